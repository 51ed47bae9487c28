"""The sources of synthetic pairs: from labelled cases to images and masks that nobody labelled. A row each.

A source makes one pair of every example of a batch, in two or three dimensions, on the device. Everything
between theta and its images is differentiable; masks are data. It says which labelled cases went in
(`Pairs.provenance`), so that a validation loss can be taken over cases that no pair was made of.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fewshotseg import labels
from fewshotseg.genseg import losses
from fewshotseg.types import Batch

NO_CASE = -1  # in provenance
# Outer variables that make a difference to every source: see `adapt.py`.
COLOURS, SCALE = ("colour_gain", "colour_shift"), "object_scale"
LARGEST_SCALE = 2.0
WEIGHTS = ("mixture", "synthetic_weight")  # of pairs, which stay as they are


class Pairs(NamedTuple):
    """Synthetic pairs.

    Attributes:
      images: `[B, *spatial, C]`, in [-1, 1].
      masks: class ids `[B, *spatial]`; where they are zoomed, soft: see `adapt.py`.
      provenance: int32 `[B, P]`, indices of the labelled cases that went in, `NO_CASE` where there
        are fewer than P. The weights of a generator were trained on all cases, whatever this says.
    """

    images: jax.Array
    masks: jax.Array
    provenance: jax.Array


class Tools(NamedTuple):
    """What a source may use.

    Attributes:
      draw: of a `levels.Family`.
      refine: likewise.
      use: theta -> the outer variables in use.
      num_classes: background included.
      sample: of a `levels.Family`.
    """

    draw: Callable | None = None
    refine: Callable | None = None
    use: Callable | None = None
    num_classes: int = 2
    sample: Callable | None = None


@dataclasses.dataclass(frozen=True)
class PairSource:
    """One source.

    Attributes:
      create: `(tools, **fields) -> make`, the fields being those of its block in `config.pairs`;
        `make(state, theta, batch, keys [B]) -> Pairs` of a batch with 'synthetic_mask',
        'synthetic_case' and, as asked for below, more: see `data/batches.py: draw_batch`.
      images: whether it looks at 'synthetic_image', the image of the mask.
      donors: whether it looks at 'donor_image', 'donor_mask' and 'donor_case', another case.
      variables: the outer variables that it looks at.
    """

    create: Callable
    images: bool = True
    donors: bool = False
    variables: tuple[str, ...] = ()


def _generator(tools: Tools):
    """Images drawn for augmented masks (Zhang et al., Nat. Commun. 2025)."""

    def make(state, theta, batch, keys):
        masks = losses.one_hot_foreground(batch["synthetic_mask"], tools.num_classes)
        drawn = tools.draw(state, theta, masks, keys)
        return Pairs(drawn, batch["synthetic_mask"], _provenance(batch["synthetic_case"]))

    return make


def _augmented(tools: Tools):
    """Another augmented real pair, as it is."""
    del tools

    def make(state, theta, batch, keys):
        del state, theta, keys
        case = batch["synthetic_case"]
        return Pairs(batch["synthetic_image"], batch["synthetic_mask"], _provenance(case))

    return make


def _copy_paste(tools: Tools):
    """The objects of the donor in the host (Ghiasi et al., CVPR 2021), with a feathered edge.

    The donor's share of a pixel is its foreground under a Gaussian, whose deviation in pixels is the outer
    variable 'blend_width'; the label is the donor's where it has one, and the host's elsewhere.
    """

    def make(state, theta, batch, keys):
        del state, keys
        images, masks = paste(batch, tools.use(theta)["blend_width"])
        return Pairs(images, masks, _provenance(batch["synthetic_case"], batch["donor_case"]))

    return make


def _composite(tools: Tools):
    """What is copied and pasted, made to fit by a generator: see `harmonizer.py`."""

    def make(state, theta, batch, keys):
        images, masks = paste(batch, tools.use(theta)["blend_width"])
        one_hot = losses.one_hot_foreground(masks, tools.num_classes)
        images = tools.refine(state, theta, images, one_hot, keys)
        return Pairs(images, masks, _provenance(batch["synthetic_case"], batch["donor_case"]))

    return make


def _appearance(tools: Tools):
    """Images drawn for augmented masks in the colours of another case, so that a mask has many."""

    def make(state, theta, batch, keys):
        masks = losses.one_hot_foreground(batch["synthetic_mask"], tools.num_classes)
        drawn = tools.draw(state, theta, masks, keys, appearance_code(batch["donor_image"]))
        provenance = _provenance(batch["synthetic_case"], batch["donor_case"])
        return Pairs(drawn, batch["synthetic_mask"], provenance)

    return make


def _sampled(tools: Tools):
    """Images with masks that a generator draws together from noise: of no case. See `wgan.py`."""

    def make(state, theta, batch, keys):
        images, masks = tools.sample(state, theta, keys)
        nothing = jnp.full_like(batch["synthetic_case"], NO_CASE)
        return Pairs(images, masks, _provenance(nothing))

    return make


def _cutmix(tools: Tools, *, largest_share: float):
    """A box of the donor in the host, image and label (Yun et al., ICCV 2019).

    Its share of the image is uniform in [0, largest_share], its proportions are those of the image, and
    it lies anywhere inside.
    """
    del tools

    def make(state, theta, batch, keys):
        del state, theta
        spatial = batch["synthetic_mask"].shape[1:]
        inside = jax.vmap(lambda key: _random_box(key, spatial, largest_share))(keys)
        images = jnp.where(inside[..., None], batch["donor_image"], batch["synthetic_image"])
        masks = jnp.where(inside, batch["donor_mask"], batch["synthetic_mask"])
        return Pairs(images, masks, _provenance(batch["synthetic_case"], batch["donor_case"]))

    return make


def _colour_transfer(tools: Tools, *, strength: float):
    """The image with mean and deviation of every channel moved to those of the donor.

    Reinhard et al., IEEE Comput. Graph. Appl. 2001, in the image's own channels. `strength` in [0, 1] is
    the share of the way. Clipped to [-1, 1].
    """
    del tools

    def make(state, theta, batch, keys):
        del state, theta, keys
        image = batch["synthetic_image"]
        mean, deviation = moments(image)
        donor_mean, donor_deviation = moments(batch["donor_image"])
        moved = donor_mean + (image - mean) * (donor_deviation / deviation)
        images = jnp.clip(image + strength * (moved - image), -1.0, 1.0)
        provenance = _provenance(batch["synthetic_case"], batch["donor_case"])
        return Pairs(images, batch["synthetic_mask"], provenance)

    return make


PAIR_SOURCES: Mapping[str, PairSource] = {
    "augmented": PairSource(_augmented),
    "copy_paste": PairSource(_copy_paste, donors=True, variables=("blend_width",)),
    "cutmix": PairSource(_cutmix, donors=True),
    "colour_transfer": PairSource(_colour_transfer, donors=True),
    "generator": PairSource(_generator, images=False, variables=("architecture",)),
    "appearance": PairSource(_appearance, images=False, donors=True, variables=("architecture",)),
    "sampled": PairSource(_sampled, images=False, variables=("architecture",)),
    "composite": PairSource(
        _composite, donors=True, variables=("architecture", "blend_width", "residual_gain")
    ),
}


def create(
    names: Sequence[str], tools: Tools, fields: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable]:
    """The sources of a method, ready to make pairs.

    Args:
      names: rows of `PAIR_SOURCES`, in order.
      tools: what they may use.
      fields: by the name of a source, its keyword arguments.

    Returns:
      name -> `make`, see `PairSource`.
    """
    return {name: PAIR_SOURCES[name].create(tools, **fields.get(name, {})) for name in names}


def looks_at(names: Sequence[str], part: str) -> bool:
    """Whether one of the sources looks at 'images' or at 'donors'."""
    return any(getattr(PAIR_SOURCES[name], part) for name in names)


def variables(names: Sequence[str]) -> frozenset[str]:
    """The outer variables that make a difference to a segmenter trained on pairs of these sources."""
    common = (("synthetic_weight", *COLOURS, SCALE) if names else ()) + (
        ("mixture",) if len(names) > 1 else ()
    )
    return frozenset(common).union(*(PAIR_SOURCES[name].variables for name in names))


def make_pairs(sources: Mapping[str, Callable], state, theta, batch: Batch, keys) -> Pairs:
    """Example i of a batch from source i modulo their number; the batch is a multiple of it.

    Args:
      sources: name -> `make`.
      state: of all players.
      theta: outer variables.
      batch: see `PairSource`.
      keys: `[B]`.

    Returns:
      Pairs in the order of the batch.
    """
    number = len(sources)
    if number == 1:
        (make,) = sources.values()
        return make(state, theta, batch, keys)
    of_pairs = {k: v for k, v in batch.items() if k.startswith(("synthetic_", "donor_"))}
    made = []
    for i, make in enumerate(sources.values()):
        part = {name: value[i::number] for name, value in of_pairs.items()}
        pairs = make(state, theta, part, keys[i::number])
        width = max(2 - pairs.provenance.shape[1], 0)
        provenance = jnp.pad(pairs.provenance, ((0, 0), (0, width)), constant_values=NO_CASE)
        made.append(pairs._replace(provenance=provenance))
    return jax.tree.map(lambda *xs: jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:]), *made)


def paste(batch: Batch, width: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Images and masks with the donors' objects pasted in; see `feather` for the width.

    What is to be ignored in a donor stays where it is.
    """
    host, donor = batch["synthetic_image"], batch["donor_image"]
    donors = batch["donor_mask"]
    inside = (donors > 0) & (donors != labels.IGNORED)
    images = host + feather(inside, width, host.dtype)[..., None] * (donor - host)
    return images, jnp.where(inside, donors, batch["synthetic_mask"])


def appearance_code(images: jax.Array) -> jax.Array:
    """Mean and deviation of every channel of images `[B, *spatial, C]`: `[B, 2 C]`, within [0, 1]."""
    mean, deviation = moments(images)
    code = jnp.concatenate([0.5 * (mean + 1.0), deviation], -1)
    return code.reshape(code.shape[0], -1)


def feather(inside: jax.Array, width: jax.Array | float, dtype) -> jax.Array:
    """Shares in [0, 1] with soft edges: `inside` under a Gaussian, smooth in its width.

    Args:
      inside: bool `[B, *spatial]`.
      width: standard deviation in pixels, above 0; differentiable. Far below a pixel, edges stay hard.
      dtype: of the result.

    Returns:
      `[B, *spatial]`; at the edge of the image, the Gaussian is that of the part inside.
    """
    share = inside.astype(dtype)
    for axis in range(1, inside.ndim):
        weights = gaussian_weights(inside.shape[axis], width, dtype)
        share = jnp.moveaxis(jnp.tensordot(share, weights, axes=(axis, 1)), -1, axis)
    return share


def gaussian_weights(size: int, width: jax.Array | float, dtype) -> jax.Array:
    """The matrix `[size, size]` of a blur along one axis: no truncation, and no radius to choose."""
    pixels = jnp.arange(size, dtype=dtype)
    weights = jnp.exp(-0.5 * ((pixels[:, None] - pixels) / width) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _random_box(key, spatial, largest_share):
    """Bool `[*spatial]`: a box of random size somewhere inside."""
    k_share, k_corner = jax.random.split(key)
    side = jax.random.uniform(k_share, maxval=largest_share) ** (1.0 / len(spatial))
    corners = jax.random.uniform(k_corner, (len(spatial),)) * (1.0 - side)
    inside = jnp.ones(spatial, bool)
    for axis, (size, corner) in enumerate(zip(spatial, corners, strict=True)):
        at = (jnp.arange(size) + 0.5) / size
        within = (at >= corner) & (at < corner + side)
        inside &= within.reshape([-1 if i == axis else 1 for i in range(len(spatial))])
    return inside


def moments(images):
    """Mean and standard deviation per channel, `[B, 1.., C]`; a flat channel has a small one, not 0."""
    axes = tuple(range(1, images.ndim - 1))
    mean = images.mean(axes, keepdims=True)
    return mean, jnp.sqrt(((images - mean) ** 2).mean(axes, keepdims=True) + 1e-4)


def _provenance(*cases):
    return jnp.stack(cases, axis=-1)
