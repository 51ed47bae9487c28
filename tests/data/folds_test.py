"""Folds: every case once, groups and look-alikes together."""

import numpy as np
import pytest

from fewshotseg import errors
from fewshotseg.data import folds
from fewshotseg.data.survey import Survey
from fewshotseg.types import Case


class _Source:
    """Noise images; `same` of them are copies of the first, and cases may have groups."""

    name, class_names, official_splits = "toy", ("object",), {}

    def __init__(self, number, groups=(), same=()):
        self.ids = tuple(f"case{i:02d}" for i in range(number))
        self.groups, self.same = dict(enumerate(groups)), set(same)

    def load(self, case_id):
        number = self.ids.index(case_id)
        seed = 0 if number in self.same else number
        image = np.random.default_rng(seed).integers(0, 255, (24, 24, 1), np.uint8)
        return Case(case_id, image, np.eye(24, dtype=np.uint8), self.groups.get(number, ""))


def _divide(source, number, seed=0):
    return folds.divide(Survey(source), source.ids, number, seed)


def test_every_case_is_in_one_fold_and_folds_are_of_nearly_equal_size():
    found = _divide(_Source(23), 5)
    assert sorted(i for fold in found for i in fold) == list(range(23))
    assert sorted(map(len, found)) == [4, 4, 5, 5, 5]
    assert found == _divide(_Source(23), 5) and found != _divide(_Source(23), 5, seed=1)


def test_groups_and_look_alikes_stay_together():
    source = _Source(20, groups=["a"] * 3 + ["b"] * 2, same=(0, 7, 9))
    for fold in _divide(source, 4):
        for together in ({0, 1, 2, 7, 9}, {3, 4}):
            assert together <= set(fold) or not together & set(fold)


def test_fewer_independent_cases_than_folds_are_refused():
    with pytest.raises(errors.InputError, match="only 2 independent"):
        _divide(_Source(6, groups=["a"] * 3 + ["b"] * 3), 3)
