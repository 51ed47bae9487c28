"""The grey-value threshold that anything trained must beat, by hand."""

import numpy as np
import pytest

from fewshotseg.errors import InputError
from fewshotseg.results.baselines import best_threshold, threshold_dice
from fewshotseg.types import Case


def _case(grey, mask):
    return Case("a", np.array([grey], np.uint8)[..., None], np.array([mask], np.uint8))


def best_threshold_dice(train, test):
    """Threshold, side and mean Dice over the test cases that have one; NaN if none has."""
    threshold, polarity = best_threshold(train)
    dice = np.array([threshold_dice(case, threshold, polarity) for case in test])
    defined = dice[np.isfinite(dice)]
    return threshold, polarity, defined.mean() if defined.size else np.nan


def test_threshold_of_separable_case():
    dark = _case([10, 20, 30, 200], [1, 1, 0, 0])
    assert best_threshold_dice([dark], [dark]) == (20, "dark", 1.0)
    bright = _case([10, 20, 30, 200], [0, 0, 1, 1])
    assert best_threshold_dice([bright], [bright]) == (21, "bright", 1.0)


def test_threshold_is_chosen_on_training_cases_only():
    train = _case([10, 20, 30, 200], [1, 1, 0, 0])
    test = _case([10, 20, 15, 30], [1, 0, 0, 1])  # at most 20: three pixels, one of them right
    assert best_threshold_dice([train], [test]) == (20, "dark", pytest.approx(2 * 1 / (3 + 2)))


def test_threshold_and_empty_cases():
    train = _case([10, 20, 30, 200], [1, 1, 0, 0])
    both_empty = _case([90, 90, 90, 90], [0, 0, 0, 0])
    false_alarm = _case([5, 90, 90, 90], [0, 0, 0, 0])
    assert best_threshold_dice([train], [train, both_empty])[2] == 1.0  # left out
    assert best_threshold_dice([train], [train, false_alarm])[2] == 0.5  # counts as 0
    assert np.isnan(best_threshold_dice([train], [both_empty])[2])
    for cases in ([], [both_empty]):
        with pytest.raises(InputError, match="threshold baseline"):
            best_threshold_dice(cases, [train])


def test_threshold_uses_the_mean_of_the_channels():
    image = np.array([[[30, 0, 0], [0, 60, 0]]], np.uint8)  # grey 10 and 20
    case = Case("a", image, np.array([[1, 0]], np.uint8))
    assert best_threshold_dice([case], [case]) == (10, "dark", 1.0)
