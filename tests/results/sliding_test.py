"""Whole cases through a network that sees tiles."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import demo
from fewshotseg.data import canvas
from fewshotseg.data.tiles import Tiles
from fewshotseg.errors import InputError
from fewshotseg.models import factory
from fewshotseg.results import export, sliding
from fewshotseg.results import predictor as predictors

SHAPES = [(40, 23), (12, 30, 17)]


def predict_pixelwise(images):
    """What a pixel is says its own value alone."""
    return (images[..., :1] + 1) / 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_constant_network_gives_a_constant(shape):
    tiles = Tiles((8,) * len(shape))
    image = np.random.default_rng(0).uniform(0, 255, (*shape, 1)).astype(np.float32)
    found = sliding.probabilities_in_tiles(
        lambda images: np.full((*images.shape[:-1], 3), 0.3, np.float32), image, (), tiles, 1, 4
    )
    assert found.shape == (*shape, 3)
    np.testing.assert_allclose(found, 0.3, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pixelwise_network_gives_what_it_gives_for_the_whole(shape):
    """Any network that looks no further than a pixel is blind to the borders of tiles."""
    image = np.random.default_rng(1).uniform(0, 255, (*shape, 1)).astype(np.float32)
    for batch_size in (1, 5):
        found = sliding.probabilities_in_tiles(
            predict_pixelwise, image, (), Tiles((8,) * len(shape), overlap=0.3), 1, batch_size
        )
        np.testing.assert_allclose(found, image / 255, atol=1e-6)


def test_the_middle_of_a_tile_outweighs_its_border():
    """Two tiles of 8 on 12 pixels; each answers with its own number. By hand: weights of both."""
    calls = iter((0.0, 1.0))
    tiles = Tiles((8, 8))
    found = sliding.segment_scaled(
        lambda images: np.full((*images.shape[:-1], 1), next(calls)),
        np.zeros((12, 8, 1), np.float32), tiles, 1,
    )  # fmt: skip
    weight = np.maximum(np.exp(-0.5 * (np.arange(8) - 3.5) ** 2), 0)  # deviation: an eighth of 8
    expected = np.concatenate([np.zeros(4), weight[:4] / (weight[:4] + weight[4:]), np.ones(4)])
    np.testing.assert_allclose(found[:, 3, 0], expected, rtol=0.02)
    assert found[4, 3, 0] < 0.05 and found[7, 3, 0] > 0.95


@pytest.mark.parametrize(
    ("shape", "inputs"), [((8, 8), 1), ((12, 8), 2), ((26, 8), 8), ((20, 20), 16), ((24, 24), 32)]
)
def test_a_small_case_costs_little_more_than_the_tiles_it_has(shape, inputs):
    """1, 2, 6, 16 and 25: filled up to a power of 2, or to whole batches."""
    seen = []

    def predict(images):
        seen.append(len(images))
        return np.zeros((*images.shape[:-1], 1), np.float32)

    sliding.segment_scaled(predict, np.zeros((*shape, 1), np.float32), Tiles((8, 8)), 16)
    assert sum(seen) == inputs


@pytest.fixture(scope="module")
def unet():
    """A predictor with a real network of 16 pixels, and the same on whole pictures."""
    config = demo.get_config("runlocal")
    config.data.image_size = 16
    config.segmenter.unet.num_levels = 1
    spec = factory.Spec(num_classes=2, image_size=(16, 16), channels=3)
    network = factory.create_segmenter("unet", config.segmenter.unet.to_dict(), spec)
    weights = jax.device_get(network.init(jax.random.key(0)))
    whole = predictors.create_predictor(config.to_dict(), weights, ("thing",), "test")
    config.data.fit = "tiles"
    tiled = predictors.create_predictor(config.to_dict(), weights, ("thing",), "test")
    assert tiled.tiles == Tiles((16, 16)) and whole.tiles is None
    return whole, tiled


def test_one_tile_that_holds_all_is_the_whole(unet):
    whole, tiled = unet
    image = np.random.default_rng(2).integers(0, 256, (16, 16, 3), np.uint8)
    (wanted,) = predictors.probabilities_of(whole, [image], ["a"], 2)
    (found,) = predictors.probabilities_of(tiled, [image], ["a"], 2)
    np.testing.assert_array_equal(found, wanted)
    # A smaller one is padded to a tile, in its middle, with black.
    small = image[:11, 3:]
    padded = np.pad(small, ((2, 3), (1, 2), (0, 0)))
    (wanted,) = predictors.probabilities_of(whole, [padded], ["a"], 2)
    (found,) = predictors.probabilities_of(tiled, [small], ["a"], 2)
    np.testing.assert_array_equal(found, wanted[2:-3, 1:-2])


def test_a_model_of_tiles_is_not_exported(unet, tmp_path):
    with pytest.raises(InputError, match="sees images in tiles, and export is for models that see"):
        export.export_model(unet[1], tmp_path / "model", {})
    assert not (tmp_path / "model").exists()


def test_large_images_go_through_in_tiles_and_keep_their_size(unet):
    _, tiled = unet
    images = [
        np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        for i, size in enumerate(((16, 40), (50, 21)))
    ]
    found = list(predictors.probabilities_of(tiled, images, ["a", "b"], 3))
    assert [x.shape for x in found] == [(16, 40, 1), (50, 21, 1)]
    scaled = canvas.to_network_image(images[0], (16, 40), 3)
    weights, total, weight = tiled.tiles.weights()[..., None], np.zeros((16, 40, 1)), 0
    weight = np.zeros((16, 40, 1))
    for start in (0, 8, 16, 24):  # overlap of a half
        part = slice(start, start + 16)
        total[:, part] += weights * tiled.predict_probabilities(scaled[None, :, part])[0]
        weight[:, part] += weights
    np.testing.assert_allclose(found[0], total / weight, atol=1e-5)
    broken = dataclasses.replace(
        tiled, predict_probabilities=lambda images: np.full((*images.shape[:-1], 1), np.nan)
    )
    with pytest.raises(InputError, match="b: the model predicts NaN"):
        list(predictors.probabilities_of(broken, images[1:], ["b"], 3))


def test_a_common_spacing_is_undone():
    tiles = Tiles((8, 8, 8), spacing=(2.0, 1.0, 1.0))
    image = np.zeros((30, 14, 9, 1), np.float32)
    image[10:20, 5:9, 3:6] = 255
    found = sliding.probabilities_in_tiles(
        predict_pixelwise, image, (1.0, 1.0, 2.0), tiles, 1, 4, "a"
    )
    assert found.shape == image.shape
    np.testing.assert_array_equal(found >= 0.5, image > 0)
    with pytest.raises(InputError, match="a: data.tiles.spacing"):
        sliding.probabilities_in_tiles(predict_pixelwise, image, (), tiles, 1, 4, "a")
