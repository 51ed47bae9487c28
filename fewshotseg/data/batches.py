"""Batches for the inner and the outer problem, drawn and augmented on the device.

A few dozen images fit on any device, so the whole training set lives there and a batch is a pure
function of it and a key: no host work per step, and a resumed run replays the same batches.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.data import augment, canvas
from fewshotseg.types import Batch, CaseSource, PRNGKey


def load_arrays(
    source: CaseSource, case_ids: tuple[str, ...], image_size: canvas.Size, channels: int
) -> dict[str, np.ndarray]:
    """Cases as network-size arrays.

    Returns:
      'image' float32 `[N, *image_size, C]` in [-1, 1] and 'mask' uint8 `[N, *image_size]`.

    Raises:
      InputError: a case cannot be read; the message names the file.
    """
    images, masks = [], []
    for case_id in case_ids:
        case = source.load(case_id)
        images.append(canvas.to_network_image(case.image, image_size, channels))
        masks.append(canvas.to_network_mask(case.mask, image_size))
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
    axis_name: str | None = None,
) -> Batch:
    """One augmented training batch; every device draws its own part of the same global batch.

    Args:
      data: 'image' `[N, *spatial, C]`, 'mask' `[N, *spatial]`.
      rng: key of this step.
      batch_size: global number of real pairs; a multiple of the number of devices. Without replacement
        while N lasts.
      num_synthetic: global number of masks for synthesis, 0 or `batch_size`.
      geometry: of the real pairs; None leaves them as they are.
      mask_geometry: of the masks for synthesis.
      num_classes: background included.
      axis_name: of the devices.

    Returns:
      'image' and 'mask': real pairs; 'synthetic_mask', unless there are none: augmented masks of other
      real cases; 'key' `[B]`, one per example, equal for any number of devices.
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
    image, mask = data["image"][real], data["mask"][real]
    if geometry is not None:
        image, mask = jax.vmap(
            lambda i, m, k: augment.augment_pair(
                i, m, k, strength=geometry, num_classes=num_classes
            )
        )(image, mask, pair_keys)
    batch = {"image": image, "mask": mask, "key": keys}
    if num_synthetic:
        batch["synthetic_mask"] = jax.vmap(
            lambda m, k: augment.augment_mask(m, k, strength=mask_geometry, num_classes=num_classes)
        )(data["mask"][choose(k_synthetic)], mask_keys)
    return batch


def draw_outer_batch(
    data: Batch, rng: PRNGKey, *, batch_size: int, axis_name: str | None = None
) -> Batch:
    """`batch_size` validation cases without augmentation, padded with weight 0 if there are fewer.

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
    return {"image": data["image"][order], "mask": data["mask"][order], "weight": weight}


def _shard(global_size: int, axis_name: str | None) -> tuple[jax.Array | int, int]:
    """This device's part of `global_size` examples: (first index, number of examples)."""
    if axis_name is None:
        return 0, global_size
    size = global_size // jax.lax.axis_size(axis_name)
    return jax.lax.axis_index(axis_name) * size, size
