"""Batches for the inner and the outer problem, drawn and augmented on the device.

A few dozen images fit on any device, so the whole training set lives there and a batch is a pure
function of it and a key: no host work per step, and a resumed run replays the same batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.data import augment, canvas
from fewshotseg.data import tiles as tiling
from fewshotseg.types import Batch, CaseSource, PRNGKey

DONORS = 1001  # folded into the key of a step; beyond the counts of its splits
TILE = 1002  # folded into the key of a pair
MARGIN = 0.25  # of a tile, on each side: from where augmentation may take pixels


class Pool(NamedTuple):
    """A finite set of masks-and-keys that synthetic pairs are drawn from, number j as often as it says.

    Attributes:
      key: of all of them; number j is `fold_in(key, j)`, and with the cases that decides mask, geometry,
        donor and noise.
      logits: float32 `[S, M]`, of M numbers for each of S sources: logarithms of how often they come.
      num_cases: the first so many cases of the data are those that masks and donors come from.
    """

    key: PRNGKey
    logits: jax.Array
    num_cases: int


def logits_of(weights: np.ndarray) -> np.ndarray:
    """Of a pool, from weights `[S, M]`, at least 0 and not all of a source 0."""
    weights = np.asarray(weights, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.max(1, keepdims=True)).astype(np.float32)


def load_arrays(
    source: CaseSource,
    case_ids: tuple[str, ...],
    image_size: canvas.Size,
    channels: int,
    tiles: tiling.Tiles | None = None,
) -> dict[str, np.ndarray]:
    """Cases as network-size arrays, or to draw tiles from.

    Returns:
      'image' float32 `[N, *image_size, C]` in [-1, 1] and 'mask' uint8 `[N, *image_size]`; with `tiles`,
      see `tiles.stack`.

    Raises:
      InputError: a case cannot be read; the message names the file.
    """
    images, masks = [], []
    for case_id in case_ids:
        case = source.load(case_id)
        if tiles:
            images.append(tiles.to_network_image(case.image, case.spacing, channels, case_id))
            masks.append(tiles.to_network_mask(case.mask, case.spacing, case_id))
            continue
        images.append(canvas.to_network_image(case.image, image_size, channels))
        masks.append(canvas.to_network_mask(case.mask, image_size))
    if tiles:
        return tiling.stack(images, masks)
    return {"image": np.stack(images), "mask": np.stack(masks)}


def draw_batch(
    data: Batch,
    rng: PRNGKey,
    *,
    batch_size: int,
    num_synthetic: int,
    geometry: augment.Geometry | None,
    mask_geometry: augment.Geometry,
    num_classes: int,
    synthetic_images: bool = False,
    donor_geometry: augment.Geometry | None = None,
    axis_name: str | None = None,
    tiles: tiling.Tiles | None = None,
    pool: Pool | None = None,
) -> Batch:
    """One augmented training batch; every device draws its own part of the same global batch.

    Args:
      data: 'image' `[N, *spatial, C]`, 'mask' `[N, *spatial]`.
      rng: key of this step.
      batch_size: global number of real pairs; a multiple of the number of devices. Without replacement
        while N lasts.
      num_synthetic: global number of masks for synthesis, 0 or `batch_size`.
      geometry: of the real pairs; None leaves them as they are.
      mask_geometry: of the masks for synthesis, and of their images.
      num_classes: background included.
      synthetic_images: whether synthesis needs the images of its masks.
      donor_geometry: of a second case for every synthetic pair; None for no such cases.
      axis_name: of the devices.
      tiles: draw a tile of every case; `data` is then that of `tiles.stack`.
      pool: what synthetic pairs are drawn from; None: any case and any geometry.

    Returns:
      'image' and 'mask': real pairs; 'key' `[B]`, one per example, equal for any number of devices;
      'case' int32 `[B]`, the index of each case. Unless there are no masks for synthesis,
      'synthetic_mask': augmented masks of other real cases, 'synthetic_case', and, if wanted,
      'synthetic_image'. If wanted, 'donor_image', 'donor_mask' and 'donor_case': a case that is not that
      of the synthetic mask, unless there is but one.
      With a pool also 'synthetic_key' `[B]`, for the noise of the pairs: see `pool_examples`.
    """
    num_cases = data["mask"].shape[0]
    k_real, k_synthetic, k_examples = jax.random.split(rng, 3)
    start, size = _shard(batch_size, axis_name)

    def choose(key):
        rounds = -(-batch_size // num_cases)
        keys = jax.random.split(key, rounds)
        order = jnp.concatenate([jax.random.permutation(k, num_cases) for k in keys])
        return jax.lax.dynamic_slice_in_dim(order, start, size)

    examples = jax.vmap(lambda i: jax.random.fold_in(k_examples, i))(start + jnp.arange(size))
    pair_keys, mask_keys, keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(examples)
    real = choose(k_real)

    def augmented_pairs(cases, keys, strength):
        if tiles:
            return jax.vmap(lambda c, k: _tile(data, c, k, tiles, strength, num_classes))(
                cases, keys
            )
        if strength is None:
            return data["image"][cases], data["mask"][cases]
        return jax.vmap(
            lambda i, m, k: augment.augment_pair(
                i, m, k, strength=strength, num_classes=num_classes
            )
        )(data["image"][cases], data["mask"][cases], keys)

    image, mask = augmented_pairs(real, pair_keys, geometry)
    batch = {"image": image, "mask": mask, "key": keys, "case": real}
    if not num_synthetic:
        return batch
    if pool is not None:
        numbers = draw_numbers(pool, k_synthetic, num_synthetic, axis_name)
        return batch | pool_examples(
            data,
            pool,
            numbers,
            geometry=mask_geometry,
            num_classes=num_classes,
            synthetic_images=synthetic_images,
            donor_geometry=donor_geometry,
        )
    host = batch["synthetic_case"] = choose(k_synthetic)
    if synthetic_images or tiles:
        pairs = augmented_pairs(host, mask_keys, mask_geometry)
        batch["synthetic_image"], batch["synthetic_mask"] = pairs
        if not synthetic_images:
            del batch["synthetic_image"]
    else:
        batch["synthetic_mask"] = jax.vmap(
            lambda m, k: augment.augment_mask(m, k, strength=mask_geometry, num_classes=num_classes)
        )(data["mask"][host], mask_keys)
    if donor_geometry is not None:
        k_donors = jax.random.fold_in(rng, DONORS)
        examples = jax.vmap(lambda i: jax.random.fold_in(k_donors, i))(start + jnp.arange(size))
        case_keys, pair_keys = jax.vmap(jax.random.split, out_axes=1)(examples)
        others = max(num_cases - 1, 1)
        steps = jax.vmap(lambda k: jax.random.randint(k, (), 1, others + 1))(case_keys)
        donor = batch["donor_case"] = (host + steps) % num_cases
        pairs = augmented_pairs(donor, pair_keys, donor_geometry)
        batch["donor_image"], batch["donor_mask"] = pairs
    return batch


def _tile(data, case, key, tiles, strength=None, num_classes=0):
    """One tile of a case, image and mask, augmented if a strength is given."""
    start = tiling.draw_start(data, case, jax.random.fold_in(key, TILE), tiles)
    if strength is None:
        return tuple(tiling.cut(data[name], case, start, tiles.size) for name in ("image", "mask"))
    first, size, offset = tiling.window(data["mask"].shape[1:], start, tiles, MARGIN)
    image, mask = (tiling.cut(data[name], case, first, size) for name in ("image", "mask"))
    more = {"strength": strength, "num_classes": num_classes, "size": tiles.size}
    return augment.augment_pair(image, mask, key, offset=offset, **more)


def draw_numbers(pool: Pool, rng: PRNGKey, number: int, axis_name: str | None = None) -> jax.Array:
    """Numbers in a pool `[B]`, this device's part of `number`: example i is for source i modulo S.

    Each is drawn by the logits of its source; `number` is a multiple of devices times sources.
    """
    start, size = _shard(number, axis_name)
    logits, examples = jnp.asarray(pool.logits), start + jnp.arange(size)
    return jax.vmap(
        lambda i: jax.random.categorical(jax.random.fold_in(rng, i), logits[i % len(logits)])
    )(examples)


def pool_examples(
    data: Batch,
    pool: Pool,
    numbers: jax.Array,
    *,
    geometry: augment.Geometry,
    num_classes: int,
    synthetic_images: bool,
    donor_geometry: augment.Geometry | None,
) -> Batch:
    """What synthetic pairs with these numbers are made of: a function of the cases and the numbers alone.

    Args:
      data: of at least `pool.num_cases` cases.
      pool: its key counts, not its logits.
      numbers: `[B]`.
      geometry: of the masks, and of their images.
      num_classes: background included.
      synthetic_images: as for `draw_batch`.
      donor_geometry: likewise.

    Returns:
      'synthetic_case', 'synthetic_mask', 'synthetic_key' and, if wanted, 'synthetic_image',
      'donor_image', 'donor_mask' and 'donor_case', see `draw_batch`.
    """
    count = pool.num_cases

    def example(number):
        key = jax.random.fold_in(pool.key, number)
        k_case, k_mask, k_step, k_donor, k_noise = jax.random.split(key, 5)
        host = jax.random.randint(k_case, (), 0, count)
        found = {"synthetic_case": host, "synthetic_key": k_noise}
        image, mask = data["image"][host], data["mask"][host]
        strength = {"strength": geometry, "num_classes": num_classes}
        if synthetic_images:
            pair = augment.augment_pair(image, mask, k_mask, **strength)
            found["synthetic_image"], found["synthetic_mask"] = pair
        else:
            found["synthetic_mask"] = augment.augment_mask(mask, k_mask, **strength)
        if donor_geometry is not None:
            donor = (host + jax.random.randint(k_step, (), 1, max(count - 1, 1) + 1)) % count
            strength = {"strength": donor_geometry, "num_classes": num_classes}
            pair = augment.augment_pair(
                data["image"][donor], data["mask"][donor], k_donor, **strength
            )
            found["donor_case"] = donor
            found["donor_image"], found["donor_mask"] = pair
        return found

    return jax.vmap(example)(numbers)


def draw_outer_batch(
    data: Batch,
    rng: PRNGKey,
    *,
    batch_size: int,
    axis_name: str | None = None,
    tiles: tiling.Tiles | None = None,
) -> Batch:
    """`batch_size` validation cases without augmentation, padded with weight 0 if there are fewer.

    With `tiles`, one tile of every case, drawn as those that train.

    Returns:
      'image', 'mask' and 'weight' `[B]`.
    """
    num_cases = data["mask"].shape[0]
    start, size = _shard(batch_size, axis_name)
    order = jax.random.permutation(rng, num_cases)[:batch_size]
    weight = jnp.ones(order.shape[0])
    padding = (0, batch_size - order.shape[0])
    order = jax.lax.dynamic_slice_in_dim(jnp.pad(order, padding), start, size)
    weight = jax.lax.dynamic_slice_in_dim(jnp.pad(weight, padding), start, size)
    if tiles:
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(start + jnp.arange(size))
        image, mask = jax.vmap(lambda c, k: _tile(data, c, k, tiles))(order, keys)
        return {"image": image, "mask": mask, "weight": weight}
    return {"image": data["image"][order], "mask": data["mask"][order], "weight": weight}


def _shard(global_size: int, axis_name: str | None) -> tuple[jax.Array | int, int]:
    """This device's part of `global_size` examples: (first index, number of examples)."""
    if axis_name is None:
        return 0, global_size
    size = global_size // jax.lax.axis_size(axis_name)
    return jax.lax.axis_index(axis_name) * size, size
