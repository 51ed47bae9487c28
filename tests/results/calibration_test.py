"""Temperatures: found again where they are known, and read for the weights that they belong to."""

import numpy as np
import pytest
from scipy import special

from fewshotseg.results import calibration


def _draw(temperature, num_classes, numbers=0):
    """Probabilities of a model that is too sure by `temperature`, and labels of a model that is right."""
    draw = np.random.default_rng(numbers)
    logits = draw.normal(0, 2, (4, 64, 64, num_classes))
    right = special.softmax(logits, axis=-1)
    labels = (draw.random((4, 64, 64, 1)) > np.cumsum(right, -1)).sum(-1).astype(np.uint8)
    sure = special.softmax(temperature * logits, axis=-1)
    return (sure[..., 1:] if num_classes == 2 else sure).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature, num_classes):
    found = calibration.fit(*_draw(temperature, num_classes))
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.num_images == 4 and found.ece_after < 0.01
    assert found.loss_after <= found.loss_before
    if temperature != 1.0:
        assert found.ece_before > 3 * found.ece_after


def test_the_loss_is_the_negative_log_likelihood():
    p = np.array([0.9, 0.2, 0.6], np.float32).reshape(1, 3, 1, 1)
    found = calibration.fit(p, np.array([1, 0, 0], np.uint8).reshape(1, 3, 1))
    assert found.loss_before == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean(), rel=1e-5)


def test_a_model_without_errors_is_not_made_infinitely_sure():
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[:, 4:] = 1
    found = calibration.fit(np.where(masks, 1.0, 0.0)[..., None].astype(np.float32), masks)
    assert np.isfinite(found.loss_before) and found.temperature >= calibration.LIMITS[0]


def test_a_temperature_belongs_to_its_weights(tmp_path):
    assert calibration.read_temperature(tmp_path, 20) == 1.0
    found = calibration.fit(*_draw(2.0, 2))
    calibration.write(found, tmp_path, 20)
    assert calibration.read_temperature(tmp_path, 20) == found.temperature
    assert calibration.read_temperature(tmp_path, 40) == 1.0  # trained on since
