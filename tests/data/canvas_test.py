"""The way to the size of the network and back."""

import jax
import numpy as np
import pytest
from PIL import Image

from fewshotseg.data import canvas


def test_a_size_is_a_tuple_of_one_number_per_axis():
    assert canvas.as_size(5) == (5, 5) and canvas.as_size(5, 3) == (5, 5, 5)
    assert canvas.as_size([4, np.int64(6)]) == (4, 6)
    assert canvas.as_size((4, 5, 6)) == (4, 5, 6)
    with pytest.raises(ValueError, match="no size for 2"):
        canvas.as_size((4, 5, 6), 2)


@pytest.mark.parametrize("size", [(24, 40), (16, 12)])
def test_canvases_that_are_no_squares(size):
    image = np.random.default_rng(1).integers(0, 256, (30, 20, 3), np.uint8)
    network = canvas.to_network_image(image, size, 3)
    expected = jax.image.resize(image / np.float32(127.5) - 1, (*size, 3), "linear")
    np.testing.assert_allclose(network, expected, atol=2e-5)
    mask = image[..., 0] // 128
    nearest = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(canvas.to_network_mask(mask, size), nearest)


def test_volumes():
    volume = np.random.default_rng(1).integers(0, 256, (9, 14, 11, 1), np.uint8)
    size = (12, 7, 16)
    network = canvas.to_network_image(volume, size, 1)
    expected = jax.image.resize(volume / np.float32(127.5) - 1, (*size, 1), "linear")
    np.testing.assert_allclose(network, expected, atol=2e-5)
    assert canvas.to_network_mask(volume[..., 0], size).shape == size
    back = canvas.restore_probabilities(np.abs(network), volume.shape[:-1])
    expected = jax.image.resize(np.abs(network), volume.shape, "linear")
    np.testing.assert_allclose(back, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(40, 64), (9, 7), (20, 50), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_network_image_agrees_with_jax(shape, channels):
    image = np.random.default_rng(1).integers(0, 256, (*shape, channels), np.uint8)
    network = canvas.to_network_image(image, 32, channels)
    assert network.dtype == np.float32 and network.shape == (32, 32, channels)
    expected = jax.image.resize(image / np.float32(127.5) - 1, (32, 32, channels), "linear")
    np.testing.assert_allclose(network, expected, atol=2e-5)


def test_network_image_converts_channels_and_range():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:] = (255, 0, 100)
    grey = canvas.to_network_image(image, 4, 1)
    np.testing.assert_allclose(grey, (0.299 * 255 + 0.114 * 100) / 127.5 - 1, rtol=1e-5)
    white = np.full((5, 5, 1), 255, np.uint8)
    np.testing.assert_array_equal(canvas.to_network_image(white, 4, 3), np.ones((4, 4, 3)))
    np.testing.assert_array_equal(canvas.to_network_image(white * 0, 4, 3), -1)


def test_network_mask_takes_the_pixel_under_the_centre():
    mask = np.arange(36, dtype=np.uint8).reshape(6, 6)
    np.testing.assert_array_equal(
        canvas.to_network_mask(mask, 3), [[7, 9, 11], [19, 21, 23], [31, 33, 35]]
    )
    grown = canvas.to_network_mask(mask[:2, :3], 6)
    np.testing.assert_array_equal(grown, np.repeat(np.repeat(mask[:2, :3], 3, 0), 2, 1))


def test_image_and_mask_stay_aligned():
    yy, xx = np.mgrid[:90, :150]
    disc = ((yy - 30) ** 2 + (xx - 100) ** 2 < 20**2).astype(np.uint8)
    image = canvas.to_network_image((disc * 255)[..., None], 64, 1)
    np.testing.assert_array_less(
        np.mean((image[..., 0] > 0) != canvas.to_network_mask(disc, 64)), 0.005
    )


def test_prediction_returns_to_the_image():
    yy, xx = np.mgrid[:90, :150]
    disc = ((yy - 30) ** 2 + (xx - 100) ** 2 < 20**2).astype(np.uint8)
    network = canvas.to_network_mask(disc, 64).astype(np.float32)[..., None]
    restored = canvas.restore_probabilities(network, (90, 150))
    assert restored.shape == (90, 150, 1) and restored.dtype == np.float32
    assert restored.min() >= 0 and restored.max() <= 1
    assert np.mean(canvas.probabilities_to_mask(restored) != disc) < 0.01
    expected = jax.image.resize(network, (90, 150, 1), "linear")
    np.testing.assert_allclose(restored, expected, atol=2e-5)


def test_probabilities_to_mask():
    binary = np.array([[[0.49], [0.5]], [[0.2], [0.9]]])
    np.testing.assert_array_equal(canvas.probabilities_to_mask(binary), [[0, 1], [0, 1]])
    np.testing.assert_array_equal(canvas.probabilities_to_mask(binary, 0.2), [[1, 1], [1, 1]])
    classes = np.array([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]])
    np.testing.assert_array_equal(canvas.probabilities_to_mask(classes), [[1, 2]])
