"""Losses of the segmenter and of the two players. Per example: every function returns `[B]`."""

import jax
import jax.numpy as jnp
import optax

from fewshotseg import labels

SMOOTHING = 1.0


def one_hot_foreground(masks: jax.Array, num_classes: int) -> jax.Array:
    """Class ids `[B, *spatial]` to float32 `[B, *spatial, num_classes - 1]`, background left out.

    Pixels to be ignored are background here: a generator draws something there, too.
    """
    return (masks[..., None] == jnp.arange(1, num_classes, dtype=masks.dtype)).astype(jnp.float32)


def _sum_over_pixels(x: jax.Array) -> jax.Array:
    return x.sum(axis=tuple(range(1, x.ndim - 1)))


def soft_overlap(probabilities: jax.Array, targets: jax.Array, kind: str) -> jax.Array:
    """Soft Dice or Jaccard per example and class.

    Dice: `(2 sum pt + s) / (sum p + sum t + s)`; Jaccard: `(sum pt + s) / (sum p + sum t - sum pt + s)`
    with smoothing s = 1 (Milletari et al., 2016; GenSeg uses Jaccard on skin lesions).

    Args:
      probabilities: `[B, *spatial, K]` in [0, 1].
      targets: the same shape, 0 or 1.
      kind: 'dice' or 'jaccard'.

    Returns:
      `[B, K]` in (0, 1].
    """
    both = _sum_over_pixels(probabilities * targets)
    total = _sum_over_pixels(probabilities) + _sum_over_pixels(targets)
    if kind == "dice":
        return (2 * both + SMOOTHING) / (total + SMOOTHING)
    if kind == "jaccard":
        return (both + SMOOTHING) / (total - both + SMOOTHING)
    raise ValueError(f"overlap is 'dice' or 'jaccard', not {kind!r}")


def segmentation_loss(logits: jax.Array, masks: jax.Array, overlap: str = "dice") -> jax.Array:
    """Cross-entropy plus `1 - overlap`.

    Args:
      logits: `[B, *spatial, K]`; K = 1: one foreground class through a sigmoid; K > 1: softmax with
        the background first, and the overlap averaged over the K - 1 foreground classes.
      masks: integer class ids `[B, *spatial]`; pixels with `labels.IGNORED` have no weight. Or shares of
        the classes `[B, *spatial, max(K, 2)]`, background first, whose sum is a pixel's weight.
      overlap: 'dice' or 'jaccard'.

    Returns:
      `[B]`, at least 0 with class ids; 0 where no pixel has weight.
    """
    num_outputs = logits.shape[-1]
    pixels = tuple(range(1, logits.ndim - 1))
    if masks.ndim == logits.ndim:
        return _soft_segmentation_loss(logits, masks, overlap)
    if num_outputs == 1:
        targets = one_hot_foreground(masks, 2)
        cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets)[..., 0]
        probabilities = jax.nn.sigmoid(logits)
    else:
        targets = one_hot_foreground(masks, num_outputs)
        # By a product and not by an index, whose derivative would be a scatter over all pixels.
        is_class = masks[..., None] == jnp.arange(num_outputs, dtype=masks.dtype)
        cross_entropy = optax.softmax_cross_entropy(logits, is_class.astype(logits.dtype))
        probabilities = jax.nn.softmax(logits)[..., 1:]
    counted = (masks != labels.IGNORED).astype(logits.dtype)
    overlaps = soft_overlap(probabilities * counted[..., None], targets, overlap)
    mean = (cross_entropy * counted).sum(pixels) / jnp.maximum(counted.sum(pixels), 1.0)
    return mean + 1.0 - overlaps.mean(-1)


def _soft_segmentation_loss(logits, shares, overlap):
    """The same of shares, differentiable with respect to them, too."""
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    pixels = tuple(range(1, logits.ndim - 1))
    cross_entropy = -(shares * jax.nn.log_softmax(logits)).sum(-1)
    counted = shares.sum(-1)
    probabilities = jax.nn.softmax(logits)[..., 1:] * counted[..., None]
    mean = cross_entropy.sum(pixels) / jnp.maximum(counted.sum(pixels), 1.0)
    return mean + 1.0 - soft_overlap(probabilities, shares[..., 1:], overlap).mean(-1)


ADVERSARIAL = ("vanilla", "lsgan", "hinge")


def adversarial_loss(logits, is_real: bool, kind: str = "vanilla") -> jax.Array:
    """How far a discriminator's logits are from saying `is_real`.

    Args:
      logits: `[B, *patches, 1]`, or a sequence of such, one per scale, whose losses are averaged.
      is_real: the wanted answer.
      kind: 'vanilla' (binary cross-entropy, Goodfellow et al., 2014), 'lsgan' (squares, Mao et
        al., 2017) or 'hinge' (`max(0, 1 -+ logit)`, Lim and Ye, 2017).

    Returns:
      `[B]`, at least 0.
    """
    sign = 1.0 if is_real else -1.0
    target = 1.0 if is_real else 0.0
    if kind == "vanilla":
        return _over_patches(
            lambda x: optax.sigmoid_binary_cross_entropy(x, jnp.full_like(x, target)), logits
        )
    if kind == "lsgan":
        return _over_patches(lambda x: (x - target) ** 2, logits)
    if kind == "hinge":
        return _over_patches(lambda x: jax.nn.relu(1.0 - sign * x), logits)
    raise ValueError(f"adversarial loss is 'vanilla', 'lsgan' or 'hinge', not {kind!r}")


def _over_patches(loss, logits):
    scales = jax.tree.leaves(logits)
    each = [loss(x).mean(axis=tuple(range(1, x.ndim))) for x in scales]
    return sum(each[1:], each[0]) / len(each) if len(each) > 1 else each[0]


def fooling_loss(logits, kind: str = "vanilla") -> jax.Array:
    """What the generator pays for its drawn pairs, `[B]`; see `adversarial_loss`.

    The discriminator's loss for saying 'real', but of the hinge the mean of minus the logits.
    """
    if kind == "hinge":
        return _over_patches(lambda x: -x, logits)
    return adversarial_loss(logits, True, kind)


def discriminator_loss(real, fake, kind: str = "vanilla") -> jax.Array:
    """Half of what it costs to call real pairs real and drawn ones drawn, as in pix2pix: `[B]`.

    Args:
      real: logits of real pairs, see `adversarial_loss`.
      fake: logits of drawn ones.
      kind: see `adversarial_loss`.
    """
    return 0.5 * (adversarial_loss(real, True, kind) + adversarial_loss(fake, False, kind))


def feature_loss(drawn, real) -> jax.Array:
    """Mean absolute difference of what a discriminator's layers make of two images, `[B]`.

    Feature matching (Wang et al., CVPR 2018, eq. 4), averaged over layers and scales.

    Args:
      drawn: activations, a pytree of `[B, *n, C]`.
      real: the same of the real pair.
    """
    pairs = list(zip(jax.tree.leaves(drawn), jax.tree.leaves(real), strict=True))
    return sum(l1_loss(d, r) for d, r in pairs) / len(pairs)


def l1_loss(drawn: jax.Array, real: jax.Array) -> jax.Array:
    """Mean absolute difference per example, `[B]`, of images `[B, *spatial, C]`."""
    return jnp.abs(drawn - real).mean(axis=tuple(range(1, drawn.ndim)))
