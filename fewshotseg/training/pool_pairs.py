"""The pairs of a pool, by number: what people rate, and what a training that listens to them draws."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewshotseg.data import augment, batches
from fewshotseg.genseg import adapt, levels, pair_sources, segmenter

CHUNK = 16  # pairs at once
DRAWN = ("generator", "appearance")  # sources that draw an image for any mask


class PoolMaker:
    """Makes the pairs of the sources of a method, as its segmenter sees them but for the jitter.

    Args:
      sources: of pairs, name -> `make`.
      use: theta -> the outer variables in use.
      pool: which masks-and-keys there are.
      geometry: of the masks and their images, see `batches.pool_examples`.
      donor_geometry: likewise.
      num_classes: background included.
      arrays: of the training cases.
    """

    def __init__(
        self,
        sources: Mapping[str, Callable],
        use: Callable,
        pool: batches.Pool,
        *,
        geometry: augment.Geometry,
        donor_geometry: augment.Geometry | None,
        num_classes: int,
        arrays: Mapping[str, np.ndarray],
    ):
        self.sources, self.pool = tuple(sources), pool
        self._arrays = jax.tree.map(jnp.asarray, dict(arrays))
        looks = pair_sources.looks_at(self.sources, "images")

        def compiled(make):
            @jax.jit
            def made(players, theta, arrays, key, numbers, masks):
                batch = batches.pool_examples(
                    arrays,
                    pool._replace(key=key),
                    numbers,
                    geometry=geometry,
                    num_classes=num_classes,
                    synthetic_images=looks,
                    donor_geometry=donor_geometry,
                )
                if masks is not None:
                    batch = {**batch, "synthetic_mask": masks}
                of_pairs = {"key": batch["synthetic_key"]}
                keys = levels.example_keys(of_pairs, segmenter.SYNTHETIC_NOISE)
                pairs = make(players, theta, batch, keys)
                pairs = adapt.adapt(pairs, use(theta), num_classes)
                return pairs._replace(masks=adapt.as_ids(pairs.masks))

            return made

        self._made = {name: compiled(make) for name, make in sources.items()}

    def pairs(
        self,
        source: str,
        players: levels.State,
        theta: Any,
        numbers: np.ndarray,
        masks: np.ndarray | None = None,
    ) -> pair_sources.Pairs:
        """The pairs of one source with these numbers, on the host.

        Args:
          source: its name.
          players: of the generator, trained.
          theta: outer variables.
          numbers: `[N]`.
          masks: instead of those of the pool, uint8 `[N, *spatial]`; for sources that draw an image for
            any mask (`DRAWN`).
        """
        found = []
        for start in range(0, len(numbers), CHUNK):
            part = np.arange(start, min(start + CHUNK, len(numbers)))
            padded = np.concatenate([part, np.repeat(part[-1:], CHUNK - len(part))])
            given = None if masks is None else jnp.asarray(masks[padded])
            chosen = jnp.asarray(np.asarray(numbers)[padded])
            args = players, theta, self._arrays, self.pool.key, chosen, given
            made, kept = jax.device_get(self._made[source](*args)), len(part)
            found.append(jax.tree.map(lambda x, kept=kept: x[:kept], made))
        return jax.tree.map(lambda *xs: np.concatenate(xs), *found)
