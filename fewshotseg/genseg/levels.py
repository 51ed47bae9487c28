r"""The method: the three levels of GenSeg as pure steps (Zhang et al., Nat. Commun. 2025).

    A* = argmin_A L_seg(S*(G*(A)), D_val)                                       outer_loss
    S* = argmin_S L_seg(S, D_tr) + gamma L_seg(S, synth(G*(A), A, D_tr))         segmenter_step
    G* = argmin_G max_H L_gan(G, H, A, D_tr)                                    gan_step

A: architecture weights of the generator and any other outer variable (theta); G, H, S: weights of
generator, discriminator and segmenter. `inner_step` updates G, H and S once; an estimator of
`hypergradient` differentiates V(S_K) through K of them with respect to theta.

A path from theta to the validation loss runs through the synthetic images the segmenter is trained
on; a second one through the generator's own training (`train_generator=True` inside the unroll).
Nothing on either path is detached, rounded or thresholded. The validation images reach only
`outer_loss`: they never update S, H or G.

Everything concrete (networks, optimisers, augmentation) comes in through `Method`, a bundle of static
functions and numbers.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fewshotseg.genseg import losses
from fewshotseg.genseg.state import GanState, InnerState, SegmenterState
from fewshotseg.hypergradient import implicit, inner_gradient
from fewshotseg.types import Batch, Params, PRNGKey, Theta


@dataclasses.dataclass(frozen=True)
class Method:
    """The static parts of the three levels.

    Attributes:
      generate: `(params, architecture, one_hot_masks, keys [B] or None) -> images [B, *spatial, C]`.
      discriminate: `(params, one_hot_masks, images) -> logits`.
      segment: `(params, images) -> logits [B, *spatial, K]`.
      jitter: `(images, keys [B]) -> images`, differentiable intensity augmentation.
      generator_optimizer: optax transformation.
      discriminator_optimizer: likewise.
      segmenter_optimizer: likewise.
      num_classes: background included; at least 2.
      overlap: 'dice' or 'jaccard', of the segmentation loss.
      adversarial: 'vanilla' or 'lsgan'.
      l1_weight: of the L1 loss of the generator.
      synthetic_weight: gamma; 0 leaves the synthetic images out altogether.
      ema_decay: of the average of the segmenter's weights.
      gradient: one of `inner_gradient.GRADIENTS`: how inner gradients are differentiated.
      axis_name: of the devices, None for one.
    """

    generate: Callable
    discriminate: Callable
    segment: Callable
    jitter: Callable
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    segmenter_optimizer: optax.GradientTransformation
    num_classes: int = 2
    overlap: str = "dice"
    adversarial: str = "vanilla"
    l1_weight: float = 100.0
    synthetic_weight: float = 1.0
    ema_decay: float = 0.99
    gradient: Callable = inner_gradient.mixed
    axis_name: str | None = None


def _mean_over_devices(tree, axis_name):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _per_example_keys(batch: Batch, purpose: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(batch["key"])


def _gradient(method, loss, params, outer, data):
    """Gradient of one player's loss, and its metrics; differentiable once more."""
    (_, metrics), grads = method.gradient(loss)(params, outer, data)
    return _mean_over_devices((grads, metrics), method.axis_name)


def _apply(optimizer, grads, params, opt):
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


def _real_pairs(batch, method):
    masks = losses.one_hot_foreground(batch["mask"], method.num_classes)
    return {"masks": masks, "real": batch["image"], "keys": _per_example_keys(batch, 0)}


def discriminator_gradient(
    discriminator: Params, generator: Params, theta: Theta, batch: Batch, *, method: Method
) -> tuple[Params, dict]:
    """Gradient of the discriminator's loss with respect to its weights; arguments as in `gan_step`."""
    data = _real_pairs(batch, method)
    drawn = method.generate(generator, theta["architecture"], data["masks"], data["keys"])

    def loss(params, outer, data):
        real = method.discriminate(params, data["masks"], data["real"])
        fake = method.discriminate(params, data["masks"], outer["drawn"])
        each = 0.5 * (
            losses.adversarial_loss(real, True, method.adversarial)
            + losses.adversarial_loss(fake, False, method.adversarial)
        )
        return each.mean(), {"discriminator/loss": each.mean()}

    return _gradient(method, loss, discriminator, {"drawn": drawn}, data)


def generator_gradient(
    generator: Params, discriminator: Params, theta: Theta, batch: Batch, *, method: Method
) -> tuple[Params, dict]:
    """Gradient of the generator's loss with respect to its weights; arguments as in `gan_step`."""

    def loss(params, outer, data):
        drawn = method.generate(params, outer["architecture"], data["masks"], data["keys"])
        logits = method.discriminate(outer["discriminator"], data["masks"], drawn)
        fooled = losses.adversarial_loss(logits, True, method.adversarial).mean()
        l1 = losses.l1_loss(drawn, data["real"]).mean()
        loss = fooled + method.l1_weight * l1
        return loss, {"generator/loss": loss, "generator/adversarial": fooled, "generator/l1": l1}

    outer = {"architecture": theta["architecture"], "discriminator": discriminator}
    return _gradient(method, loss, generator, outer, _real_pairs(batch, method))


def gan_step(
    state: GanState, theta: Theta, batch: Batch, rng: PRNGKey, *, method: Method
) -> tuple[GanState, dict]:
    """One update of the discriminator, then one of the generator, on real pairs (level 1).

    Args:
      state: both players.
      theta: outer variables; `theta['architecture']` enters the generator.
      batch: 'image' `[B, *spatial, C]` in [-1, 1], 'mask' `[B, *spatial]`, 'key' `[B]`.
      rng: unused; all randomness comes from `batch['key']`.
      method: the static parts.

    Returns:
      The new state, and the losses.
    """
    del rng
    grads, metrics_h = discriminator_gradient(
        state.discriminator, state.generator, theta, batch, method=method
    )
    discriminator, discriminator_opt = _apply(
        method.discriminator_optimizer, grads, state.discriminator, state.discriminator_opt
    )
    grads, metrics_g = generator_gradient(
        state.generator, discriminator, theta, batch, method=method
    )
    generator, generator_opt = _apply(
        method.generator_optimizer, grads, state.generator, state.generator_opt
    )
    state = GanState(generator, discriminator, generator_opt, discriminator_opt)
    return state, {**metrics_h, **metrics_g}


def draw_synthetic(generator: Params, theta: Theta, batch: Batch, *, method: Method) -> jax.Array:
    """Images `[B, *spatial, C]` in [-1, 1] for `batch['synthetic_mask']`, jittered, differentiable."""
    masks = losses.one_hot_foreground(batch["synthetic_mask"], method.num_classes)
    keys = _per_example_keys(batch, 1)
    drawn = method.generate(generator, theta["architecture"], masks, keys)
    return method.jitter(drawn, _per_example_keys(batch, 2))


def synthetic_weight(theta: Theta, method: Method) -> jax.Array:
    """gamma, the weight of the synthetic loss.

    `method.synthetic_weight`, unless 'synthetic_weight' is among the outer variables: then twice that
    times the sigmoid of it. An unbounded weight runs away under a short unroll.
    """
    if "synthetic_weight" not in theta:
        return jnp.float32(method.synthetic_weight)
    return 2.0 * method.synthetic_weight * jax.nn.sigmoid(theta["synthetic_weight"])


def segmenter_gradient(
    segmenter: Params, generator: Params, theta: Theta, batch: Batch, *, method: Method
) -> tuple[Params, dict]:
    """Gradient of the segmenter's loss with respect to its weights; arguments as in `segmenter_step`.

    Real and synthetic images go through the network as one batch. With `synthetic_weight` 0 no image
    is drawn.
    """
    with_synthetic = method.synthetic_weight > 0
    data = {
        "images": method.jitter(batch["image"], _per_example_keys(batch, 3)),
        "masks": batch["mask"],
    }
    outer = {}
    if with_synthetic:
        data["synthetic_masks"] = batch["synthetic_mask"]
        outer["synthetic"] = draw_synthetic(generator, theta, batch, method=method)
        outer["weight"] = synthetic_weight(theta, method)

    def loss(params, outer, data):
        if not with_synthetic:
            logits = method.segment(params, data["images"])
            real = losses.segmentation_loss(logits, data["masks"], method.overlap).mean()
            return real, {"segmenter/loss": real, "segmenter/real_loss": real}
        logits = method.segment(params, jnp.concatenate([data["images"], outer["synthetic"]]))
        masks = jnp.concatenate([data["masks"], data["synthetic_masks"]])
        each = losses.segmentation_loss(logits, masks, method.overlap)
        num_real = data["images"].shape[0]
        real, synthetic = each[:num_real].mean(), each[num_real:].mean()
        total = real + outer["weight"] * synthetic
        return total, {
            "segmenter/loss": total,
            "segmenter/real_loss": real,
            "segmenter/synthetic_loss": synthetic,
        }

    return _gradient(method, loss, segmenter, outer, data)


def segmenter_step(
    state: SegmenterState,
    generator: Params,
    theta: Theta,
    batch: Batch,
    rng: PRNGKey,
    *,
    method: Method,
) -> tuple[SegmenterState, dict]:
    """One update of the segmenter on real and synthetic pairs (level 2).

    Args:
      state: the segmenter.
      generator: weights of the generator.
      theta: outer variables.
      batch: as for `gan_step`, and 'synthetic_mask' `[B, *spatial]`.
      rng: unused; all randomness comes from `batch['key']`.
      method: the static parts.

    Returns:
      The new state, and the losses.
    """
    del rng
    grads, metrics = segmenter_gradient(state.params, generator, theta, batch, method=method)
    params, opt = _apply(method.segmenter_optimizer, grads, state.params, state.opt)
    ema = optax.incremental_update(params, state.ema, 1.0 - method.ema_decay)
    return SegmenterState(params, opt, ema), metrics


def inner_step(
    state: InnerState,
    theta: Theta,
    batch: Batch,
    rng: PRNGKey,
    *,
    method: Method,
    train_generator: bool = True,
    through_generator: bool = True,
) -> tuple[InnerState, dict]:
    """One update of every inner player: Phi of `hypergradient`.

    Args:
      state: generator, discriminator and segmenter; `gan` may be None where nothing is drawn.
      theta: outer variables.
      batch: see `segmenter_step`.
      rng: handed to both steps.
      method: the static parts.
      train_generator: also take a GAN step first; the segmenter then sees the new generator.
      through_generator: whether a derivative with respect to theta also follows the path through the
        generator's weights; the step itself is the same.

    Returns:
      The new state, and the losses of all players.
    """
    gan, metrics = state.gan, {}
    if train_generator:
        gan, metrics = gan_step(gan, theta, batch, rng, method=method)
    generator = None if gan is None else gan.generator
    if not through_generator:
        gan, generator = jax.lax.stop_gradient((gan, generator))
    segmenter, segmenter_metrics = segmenter_step(
        state.segmenter, generator, theta, batch, rng, method=method
    )
    return InnerState(gan, segmenter), {**metrics, **segmenter_metrics}


def outer_loss(
    state: InnerState, theta: Theta, batch: Batch, *, method: Method
) -> tuple[jax.Array, dict]:
    """Validation loss of the trained segmenter, V(S) (level 3).

    Args:
      state: only the segmenter's current weights are read.
      theta: unused: the validation loss depends on it through the state alone.
      batch: 'image' `[B, *spatial, C]` and 'mask' `[B, *spatial]` of validation cases, 'weight' `[B]`
        1 for cases, 0 for padding.
      method: the static parts.

    Returns:
      The mean loss over the batch, and metrics.
    """
    del theta
    logits = method.segment(state.segmenter.params, batch["image"])
    each = losses.segmentation_loss(logits, batch["mask"], method.overlap)
    # Every device divides by the same number, so that the mean over devices is the weighted mean.
    cases = _mean_over_devices(batch["weight"].sum(), method.axis_name)
    loss = (each * batch["weight"]).sum() / cases
    return loss, {"outer/loss": loss}


def stationarity(*, method: Method, through_generator: bool = True) -> implicit.Stationarity:
    """The inner problem as an equation, for the estimators of `implicit`.

    Args:
      method: the static parts.
      through_generator: all three players, every gradient taken at the same state, so that the path
        through the generator's training counts. Otherwise the segmenter alone, with the generator as
        it is: H is then symmetric.
    """
    optimizers = {
        "segmenter": method.segmenter_optimizer,
        "generator": method.generator_optimizer,
        "discriminator": method.discriminator_optimizer,
    }

    def weights(state):
        found = {"segmenter": state.segmenter.params}
        if through_generator:
            found["generator"] = state.gan.generator
            found["discriminator"] = state.gan.discriminator
        return found

    def replace(state, w):
        gan = state.gan
        if through_generator:
            gan = gan.replace(generator=w["generator"], discriminator=w["discriminator"])
        return InnerState(gan, state.segmenter.replace(params=w["segmenter"]))

    def gradient(state, theta, batch, rng):
        del rng
        gan, segmenter = state.gan, state.segmenter.params
        found = {
            "segmenter": segmenter_gradient(segmenter, gan.generator, theta, batch, method=method)
        }
        if through_generator:
            g, h = gan.generator, gan.discriminator
            found["generator"] = generator_gradient(g, h, theta, batch, method=method)
            found["discriminator"] = discriminator_gradient(h, g, theta, batch, method=method)
        return {player: grads for player, (grads, _) in found.items()}

    def update(grads, state):
        states = {"segmenter": state.segmenter.opt}
        if through_generator:
            states["generator"] = state.gan.generator_opt
            states["discriminator"] = state.gan.discriminator_opt
        w = weights(state)
        return {p: optimizers[p].update(g, states[p], w[p])[0] for p, g in grads.items()}

    return implicit.Stationarity(weights, replace, gradient, update)
