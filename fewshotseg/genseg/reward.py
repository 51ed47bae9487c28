r"""R(image, mask): the probability that a person accepts a synthetic pair, and what it does to theta.

R is a logistic regression on a few dozen numbers that describe how an image and its mask go together,
each compared with real pairs, so that a few dozen ratings are enough to fit it:

    R = sigmoid(slope (w . [z, sqrt(1 + z^2) - 1] + b) + offset),    z = (f(image, mask) - m) / s

with m and s of the features f of real pairs (z smoothly bounded: nothing is infinitely unreal), and slope
and offset from ratings that w has not seen (Platt, "Probabilistic outputs for support vector machines",
1999). It is differentiable in the image. As a term of the outer loss, beta (1 - R), it is what
reinforcement learning from human feedback calls a reward (Christiano et al., NeurIPS 2017), with the
hypergradient in the place of a policy gradient: images depend on theta, and on the generator that theta
has trained.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.genseg import adapt, levels, pair_sources, segmenter
from fewshotseg.labels import IGNORED
from fewshotseg.types import Batch

LARGEST = 6.0  # that |z| comes near to
SCALES = (
    1 / 48,
    1 / 16,
    1 / 5,
)  # of the blurs that a pixel is told from, shares of the image's side
SMALL = 1e-3  # share of the pixels that stands in for an empty region


class Pixels(NamedTuple):
    """A logistic regression that tells foreground from background, pixel by pixel; a pytree.

    Attributes:
      center: `[P]`, see `pixel_features`.
      scale: `[P]`, above 0.
      weights: `[P]`.
      bias: a scalar.
    """

    center: jax.Array
    scale: jax.Array
    weights: jax.Array
    bias: jax.Array


class Reward(NamedTuple):
    """The numbers of R; a pytree.

    Attributes:
      pixels: fitted to the labelled cases: where in an image an object seems to be.
      center: m, `[F]`.
      scale: s, `[F]`, above 0.
      weights: w, `[2 F]`.
      bias: b, a scalar.
      slope: at least 0; 0 where the ratings of others say nothing.
      offset: a scalar.
      members: `[M, 2 F + 1]`, weights and bias of fits to resampled ratings, whose spread says where more
        ratings would tell most.
    """

    pixels: Pixels
    center: jax.Array
    scale: jax.Array
    weights: jax.Array
    bias: jax.Array
    slope: jax.Array
    offset: jax.Array
    members: jax.Array


def pixel_features(images: jax.Array) -> jax.Array:
    """The colours around every pixel, relative to those of the image, and their products.

    Args:
      images: `[B, *spatial, C]` in [-1, 1].

    Returns:
      `[B, *spatial, P]` with P = n + n (n + 1) / 2 and n = 4 C: three blurs of the normalised image, and
      the image as it is.
    """
    mean, deviation = pair_sources.moments(images)
    relative = (images - mean) / jnp.sqrt(deviation**2 + 1e-2)
    side = max(images.shape[1:-1])
    first = jnp.concatenate([*(_blur(relative, side * scale) for scale in SCALES), images], -1)
    rows, columns = np.triu_indices(first.shape[-1])
    return jnp.concatenate([first, first[..., rows] * first[..., columns]], -1)


def _blur(images, width):
    for axis in range(1, images.ndim - 1):
        weights = pair_sources.gaussian_weights(images.shape[axis], width, images.dtype)
        images = jnp.moveaxis(jnp.tensordot(images, weights, axes=(axis, 1)), -1, axis)
    return images


def find_objects(pixels: Pixels, images: jax.Array) -> jax.Array:
    """The probability of the foreground as far as the colours around a pixel tell: `[B, *spatial]`."""
    described = (pixel_features(images) - pixels.center) / pixels.scale
    return jax.nn.sigmoid(described @ pixels.weights + pixels.bias)


def features(pixels: Pixels, images: jax.Array, masks: jax.Array) -> jax.Array:
    """What R looks at, differentiable in the images.

    Regions: the foreground, the background, and the strips on both sides of the border between them.
    Means and deviations of the channels there, and their differences; how well the colours alone tell
    foreground from background, by a linear discriminant of this very image; how far the mask is where an
    object seems to be, as other images have it; how steep the image is at the border; and size, place and
    compactness of the mask.

    Args:
      pixels: see `Reward`.
      images: `[B, *spatial, C]` in [-1, 1].
      masks: class ids `[B, *spatial]`; all classes together are the foreground.

    Returns:
      `[B, 6 C + 12 + D]` for D axes.
    """
    spatial = masks.shape[1:]
    foreground = (masks > 0) & (masks != IGNORED)
    inside = foreground.astype(images.dtype)
    soft = pair_sources.feather(foreground, max(spatial) / 32.0, images.dtype)
    inner, outer = inside * (1.0 - soft), (1.0 - inside) * soft
    far = (1.0 - inside) * (1.0 - soft)
    m_in, d_in = _moments(images, inside)
    m_out, d_out = _moments(images, 1.0 - inside)
    m_inner, _ = _moments(images, inner)
    m_outer, _ = _moments(images, outer)
    m_far, _ = _moments(images, far)
    colours = [m_in, m_far, jnp.log(d_in), jnp.log(d_out), m_inner - m_outer, m_outer - m_far]

    # Fisher's discriminant with a diagonal covariance, at the middle of the two means.
    along = (m_in - m_out) / (d_in**2 + d_out**2)
    middle = 0.5 * (m_in + m_out)
    axes = tuple(range(1, masks.ndim))
    score = jax.nn.sigmoid(((images - _spread(middle, images)) * _spread(along, images)).sum(-1))
    found = (score * inside).sum(axes) / _area(inside)
    false = (score * (1.0 - inside)).sum(axes) / _area(1.0 - inside)
    dice = 2.0 * (score * inside).sum(axes) / (score.sum(axes) + _area(inside))

    seems = find_objects(pixels, images)
    hit, missed = ((seems**2 * region).sum(axes) for region in (inside, 1.0 - inside))
    one = SMALL * float(np.prod(spatial))
    seen = [
        2.0 * (seems * inside).sum(axes) / (seems.sum(axes) + _area(inside)),
        _mean(seems, inside),
        jnp.log((missed + one) / (hit + one)),
        jnp.log(missed + one),
    ]

    steep = _steepness(images)
    at_border = soft * (1.0 - soft)
    ratios = [
        jnp.log(_mean(steep, at_border) + 1e-3),
        jnp.log(_mean(steep, inside) + 1e-3),
        jnp.log(_mean(steep, 1.0 - inside) + 1e-3),
    ]
    share = inside.mean(axes)
    places = [jnp.linspace(-1.0, 1.0, n, dtype=images.dtype) for n in spatial]
    grid = jnp.stack(jnp.meshgrid(*places, indexing="ij"), -1)
    weights = inside / (_area(inside).reshape(-1, *(1,) * len(spatial)))
    centre = (weights[..., None] * grid).sum(axes)
    distance = grid - centre.reshape(-1, *(1,) * len(spatial), len(spatial))
    extent = (weights * (distance**2).sum(-1)).sum(axes)
    compact = jnp.log(extent + 1e-3) - (2.0 / len(spatial)) * jnp.log(share + SMALL)
    rest = [found, false, dice, *seen, *ratios, jnp.log(share + SMALL), compact]
    return jnp.concatenate([*colours, jnp.stack(rest, -1), centre], -1)


def _area(region):
    axes = tuple(range(1, region.ndim))
    return region.sum(axes) + SMALL * float(np.prod(region.shape[1:]))


def _mean(values, region):
    return (values * region).sum(tuple(range(1, region.ndim))) / _area(region)


def _moments(images, region):
    """Mean and deviation `[B, C]` of a region; an empty one is grey, and as good as flat."""
    axes, weight = tuple(range(1, region.ndim)), region[..., None]
    area = _area(region)[:, None]
    mean = (images * weight).sum(axes) / area
    variance = ((images - _spread(mean, images)) ** 2 * weight).sum(axes) / area
    return mean, jnp.sqrt(variance + 1e-3)


def _spread(values, images):
    return values.reshape(len(values), *(1,) * (images.ndim - 2), -1)


def _steepness(images):
    """Squared differences of neighbours, summed over axes and channels: `[B, *spatial]`."""
    total = 0.0
    for axis in range(1, images.ndim - 1):
        difference = jnp.diff(images, axis=axis)
        ends = [(0, 0)] * images.ndim
        ends[axis] = (0, 1)
        total = total + (jnp.pad(difference, ends) ** 2).sum(-1)
    return total


def describe(found: jax.Array, center: jax.Array, scale: jax.Array) -> jax.Array:
    """Features `[B, F]` as the regression takes them: `[z, sqrt(1 + z^2) - 1]`, `[B, 2 F]`."""
    z = (found - center) / scale
    z = z / jnp.sqrt(1.0 + (z / LARGEST) ** 2)
    return jnp.concatenate([z, jnp.sqrt(1.0 + z**2) - 1.0], -1)


def accept_probability(reward: Reward, images: jax.Array, masks: jax.Array) -> jax.Array:
    """R: `[B]` in (0, 1), of images `[B, *spatial, C]` in [-1, 1] and masks `[B, *spatial]`."""
    found = features(reward.pixels, images, masks)
    described = describe(found, reward.center, reward.scale)
    logit = described @ reward.weights + reward.bias
    return jax.nn.sigmoid(reward.slope * logit + reward.offset)


def term(sources: Mapping[str, Callable], use: Callable, num_classes: int = 2) -> Callable:
    """A term of `levels.outer_loss`: beta (1 - R) of the pairs that theta makes, before their jitter.

    Of several sources, the mean over each weighted by the outer variable 'mixture': the weight of a source
    whose pairs are refused goes down.

    Args:
      sources: of synthetic pairs, name -> `make`.
      use: theta -> the outer variables in use.
      num_classes: background included.

    Returns:
      `(state, theta, batch) -> (loss, metrics)`; the batch has, beside what the other terms look at, what
      the sources do ('synthetic_mask', ...), 'synthetic_key' `[B]`, and 'reward', a `Reward`, and 'beta':
      other ratings are other data, not another program.
    """

    def loss(state, theta, batch: Batch):
        used = use(theta)
        of_pairs = {"key": batch["synthetic_key"]}
        keys = levels.example_keys(of_pairs, segmenter.SYNTHETIC_NOISE)
        pairs = pair_sources.make_pairs(sources, state, theta, batch, keys)
        pairs = adapt.adapt(pairs, used, num_classes)
        masks = adapt.as_ids(pairs.masks)  # of 'object_scale', ratings hear through the image alone
        accepted = accept_probability(batch["reward"], pairs.images, masks)
        of_source = accepted.reshape(-1, len(sources)).mean(0)
        share = used["mixture"] if len(sources) > 1 else jnp.ones(1)
        refused = 1.0 - (share * of_source).sum()
        return batch["beta"] * refused, {"outer/rejected": refused}

    return loss
