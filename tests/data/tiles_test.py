"""Cases in tiles: scales, places, draws, and what augmentation sees around a tile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg.data import augment, batches, canvas
from fewshotseg.data.tiles import Tiles, draw_start, stack, typical, window
from fewshotseg.errors import InputError
from fewshotseg.types import Case


def test_a_common_spacing_keeps_corners_and_values():
    tiles = Tiles((4, 4, 4), spacing=(2.0, 1.0, 1.0))
    assert tiles.scaled_shape((10, 12, 5), (3.0, 0.5, 1.0)) == (15, 6, 5)
    assert Tiles((4, 4)).scaled_shape((10, 12), ()) == (10, 12)
    # Half the pixels along the second axis: pairs of voxels are averaged, none is invented.
    image = np.repeat(np.arange(6.0), 2).reshape(1, 12, 1, 1) * np.ones((6, 12, 6, 1))
    scaled = tiles.to_network_image(image.astype(np.float32), (2.0, 0.5, 1.0), 1)
    assert scaled.shape == (6, 6, 6, 1)
    np.testing.assert_allclose((scaled[2, 1:5, 3, 0] + 1) * 127.5, np.arange(1, 5), atol=0.3)
    with pytest.raises(InputError, match="scan 7: data.tiles.spacing .* does not say how large"):
        tiles.to_network_mask(np.zeros((4, 4, 4), np.uint8), (), "scan 7")


@pytest.mark.parametrize("shape", [(9, 40), (16, 16), (17, 16, 50), (3, 20, 16)])
def test_tiles_cover_all_with_the_overlap(shape):
    size = (16,) * len(shape)
    tiles = Tiles(size, overlap=0.5)
    mask = np.ones(shape, np.uint8)
    padded = tiles.to_network_mask(mask, ())
    np.testing.assert_array_equal(tiles.unpadded(padded, shape), mask)
    assert padded.sum() == mask.sum() and min(padded.shape) >= 16
    starts, seen = np.array(tiles.starts(padded.shape)), np.zeros(padded.shape, int)
    for start in starts:
        seen[tuple(slice(s, s + 16) for s in start)] += 1
    assert seen.min() >= 1
    for axis, n in enumerate(padded.shape):
        places = np.unique(starts[:, axis])
        assert places[0] == 0 and places[-1] == n - 16
        assert len(places) == 1 or np.diff(places).max() <= 8 and np.diff(places).min() >= 1


def test_weights_are_a_gaussian_with_a_floor():
    weights = Tiles((16, 32)).weights()
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-6)
    # One standard deviation (an eighth of the side) apart along the first axis: exp(-1/2), twice.
    np.testing.assert_allclose(
        weights[9, 16] / weights[7, 16], np.exp(-0.5 * (0.75**2 - 0.25**2)), rtol=1e-5
    )
    assert weights.min() == np.float32(1e-3) and weights.max() == 1.0


@functools.cache
def make_data():
    """Two cases of other sizes; the pixels' values are their places."""
    images, masks = [], []
    for shape in ((30, 40), (20, 60)):
        place = np.indices(shape).transpose(1, 2, 0) / 100.0
        images.append(place.astype(np.float32))
        masks.append(np.zeros(shape, np.uint8))
    masks[0][2:4, 35:38], masks[0][25, 5] = 1, 2
    return stack(images, masks)


def test_stacked_cases_know_their_sizes_and_their_classes_in_turns():
    data = make_data()
    assert data["image"].shape == (2, 30, 60, 2)
    np.testing.assert_array_equal(data["extent"], [[30, 40], [20, 60]])
    np.testing.assert_array_equal(data["has_voxels"], [True, False])
    found = data["mask"][0][tuple(data["voxels"][0].T)]
    np.testing.assert_array_equal(found[:6], [1, 2, 1, 2, 1, 2])
    assert (found == 1).sum() == (found == 2).sum()
    assert len(np.unique(data["voxels"][0], axis=0)) == 7  # every pixel of both classes


def test_draws_stay_in_the_case_and_oversample_the_classes():
    data = {name: jnp.asarray(array) for name, array in make_data().items()}
    keys = jax.random.split(jax.random.key(0), 400)

    def starts(case, share):
        tiles = Tiles((16, 16), foreground_share=share)
        return np.asarray(jax.jit(jax.vmap(lambda k: draw_start(data, case, k, tiles)))(keys))

    for case, room in ((0, (14, 24)), (1, (4, 44))):
        found = starts(case, 0.0)
        assert found.min() == 0 and tuple(found.max(0)) == room  # all of it, and no more
    around = starts(0, 1.0)
    corner, single = (around == [0, 24]).all(1), (around == [14, 0]).all(1)
    assert (corner | single).all()  # clipped: the tile stays in the case
    assert 0.4 < corner.mean() < 0.6  # one class as often as the other
    both = starts(0, 0.5)
    assert 0.4 < ((both == [0, 24]).all(1) | (both == [14, 0]).all(1)).mean() < 0.62
    np.testing.assert_array_equal(starts(1, 1.0), starts(1, 0.0))  # a case without classes


def test_a_tile_is_a_piece_of_its_case_and_augmentation_moves_it():
    data = {name: jnp.asarray(array) for name, array in make_data().items()}
    tiles, nothing = Tiles((8, 8)), dict(scale=0.0, translate=0.0, rotate=0.0, shear=0.0, flip=0.0)
    draw = functools.partial(
        batches.draw_batch, batch_size=4, num_synthetic=4, num_classes=3, tiles=tiles,
        mask_geometry=augment.Geometry(**nothing), synthetic_images=True,
    )  # fmt: skip
    key = jax.random.key(3)
    plain = draw(data, key, geometry=None)
    still = draw(data, key, geometry=augment.Geometry(**nothing))
    moved = draw(data, key, geometry=augment.Geometry(**nothing | {"translate": 0.2}))
    assert plain["image"].shape == (4, 8, 8, 2) and plain["synthetic_mask"].shape == (4, 8, 8)
    for i, case in enumerate(np.asarray(plain["case"])):
        first = np.round(np.asarray(plain["image"][i, 0, 0]) * 100).astype(int)
        place = (case, *(slice(f, f + 8) for f in first))
        np.testing.assert_array_equal(plain["image"][i], data["image"][place])
        np.testing.assert_array_equal(plain["mask"][i], data["mask"][place])
    np.testing.assert_allclose(still["image"], plain["image"], atol=1e-5)
    np.testing.assert_array_equal(still["mask"], plain["mask"])
    # Shifted by up to a fifth: what comes in is what lies beside the tile, not a repeated edge.
    steps = np.diff(np.asarray(moved["image"]), axis=1)[..., 0]
    assert np.abs(np.asarray(moved["image"] - plain["image"])).max() > 0.003
    inside = [i for i in range(4) if 2 < float(plain["image"][i, 0, 0, 0]) * 100 < 9]
    for i in inside:
        np.testing.assert_allclose(steps[i], 0.01, atol=1e-4)
    other = draw(data, jax.random.key(4), geometry=None)
    assert np.abs(np.asarray(other["image"] - plain["image"])).max() > 0
    outer = batches.draw_outer_batch(data, key, batch_size=3, tiles=tiles)
    assert outer["image"].shape == (3, 8, 8, 2) and outer["weight"].tolist() == [1, 1, 0]


def test_windows_end_where_the_arrays_do():
    tiles = Tiles((8, 8))
    for start, wanted_first, wanted_offset in (
        ((0, 0), (0, 0), (0, 0)),
        ((22, 30), (18, 28), (4, 2)),
    ):
        first, size, offset = window((30, 40), jnp.array(start), tiles, 0.25)
        assert size == (12, 12)
        np.testing.assert_array_equal(first, wanted_first)
        np.testing.assert_array_equal(offset, wanted_offset)
    assert window((8, 40), jnp.array((0, 0)), tiles, 0.25)[1] == (8, 12)


class _Source:
    name, class_names, ids, official_splits = "two", ("thing",), ("a", "b"), {}

    def load(self, case_id):
        shape = {"a": (12, 20, 10), "b": (8, 9, 30)}[case_id]
        mask = np.zeros(shape, np.uint8)
        mask[4:7, 3:6, 2:5] = 1
        image = (mask * 200.0)[..., None].astype(np.float32)
        return Case(case_id, image, mask, spacing=(2.0, 1.0, 1.0))


def test_arrays_of_volumes_at_a_common_spacing():
    tiles = Tiles((16, 16, 16), spacing=(1.0, 1.0, 1.0))
    data = batches.load_arrays(_Source(), ("a", "b"), (16, 16, 16), 1, tiles)
    np.testing.assert_array_equal(data["extent"], [[24, 20, 16], [16, 16, 30]])
    mask = data["mask"][0]
    assert mask.sum() == 2 * 27 and mask[8:14, 3:6, 5:8].all()  # padded by 3 along the last axis
    assert data["image"][0].min() == -1.0
    shown = typical(data, tiles, 5)
    assert shown["image"].shape == (2, 16, 16, 16, 1) and shown["mask"].reshape(2, -1).any(1).all()
    assert canvas.as_size(tiles.size) == (16, 16, 16)
