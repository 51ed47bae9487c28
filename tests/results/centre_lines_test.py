"""clDice by hand, and where it is undefined."""

import math

import numpy as np
import pytest

from fewshotseg.results.centre_lines import cldice


def test_thin_lines_by_hand():
    """A cross of two lines one pixel wide is its own centre line; the prediction lacks an arm's half."""
    reference = np.zeros((21, 21), bool)
    reference[10, 3:18] = reference[3:18, 10] = True
    prediction = reference.copy()
    prediction[10, 11:18] = False
    prediction[2, 3:9] = True  # six pixels elsewhere
    assert cldice(reference, reference) == 1.0
    precision, sensitivity = 22 / 28, 22 / 29
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert cldice(prediction, reference) == pytest.approx(expected, abs=0.02)
    assert cldice(prediction, ~prediction) == 0.0


def test_thickness_does_not_count_and_breaks_do():
    line = np.zeros((15, 60), bool)
    line[7, 2:58] = True
    thick = np.zeros_like(line)
    thick[5:10, 2:58] = True
    assert cldice(thick, line) == pytest.approx(1.0, abs=0.03)
    broken = thick.copy()
    broken[:, 20:40] = False
    assert 0.6 < cldice(broken, thick) < 0.85


def test_empty_masks_and_empty_centre_lines():
    empty, line = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert cldice(empty, line) == cldice(line, empty) == 0.0
    bar = np.zeros((6, 6, 14), bool)
    bar[2:4, 2:4, 2:12] = True  # of an even thickness: no voxel is in its middle
    assert math.isnan(cldice(bar, bar))
    bar[4, 2:4, 2:12] = bar[2:5, 4, 2:12] = True
    assert cldice(bar, bar) == 1.0
