"""Axes of volumes: every order and direction there and back."""

import itertools

import numpy as np
import pytest

from fewshotseg.data import geometry

SHAPE = (3, 4, 5)  # of the array as stored
SPACING = (0.5, 1.0, 2.5)
ORDERS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
)


def make_affine(order, signs, turn=0.0):
    """Stored axis i runs along world axis order[i], turned about z by some degrees."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * SPACING[axis]
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:3, 3] = (-12.5, 7.25, 100.0)
    return affine


@pytest.mark.parametrize("turn", [0.0, 20.0, 45.0])
def test_all_48_orders_and_directions_come_back(turn):
    assert len(ORDERS) == 48
    stored = np.random.default_rng(0).normal(size=SHAPE)
    for order, signs in ORDERS:
        affine = make_affine(order, signs, turn)
        orientation = geometry.closest_orientation(affine)
        canonical = orientation.to_canonical(stored)
        there = orientation.canonical_affine(affine, SHAPE)
        np.testing.assert_array_equal(orientation.to_stored(canonical), stored)
        # Every voxel stays where it is in the patient.
        for index in ((0, 0, 0), (2, 3, 4), (1, 0, 3)):
            (found,) = np.argwhere(canonical == stored[index])
            np.testing.assert_allclose(there @ [*found, 1], affine @ [*index, 1], atol=1e-12)
        assert sorted(geometry.spacing_of(there)) == pytest.approx(sorted(SPACING))


def test_canonical_axes_run_to_head_back_and_left():
    for order, signs in ORDERS:
        orientation = geometry.closest_orientation(make_affine(order, signs))
        there = orientation.canonical_affine(make_affine(order, signs), SHAPE)[:3, :3]
        directions = there / np.linalg.norm(there, axis=0)
        np.testing.assert_array_equal(directions.T, [[0, 0, 1], [0, -1, 0], [-1, 0, 0]])


def test_oblique_axes_never_share_a_canonical_one():
    """Two stored axes that are both closest to one direction: the sum decides."""
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (0.8, 0.6, 0.0), (0.75, -0.66, 0.0)
    assert sorted(geometry.closest_orientation(affine).axes) == [0, 1, 2]


def test_affines_that_place_nothing():
    assert geometry.fault_of(np.eye(4)) == ""
    flat, same, broken = np.eye(4), np.eye(4), np.eye(4)
    flat[:3, 1], same[:3, 1], broken[0, 3] = 0, same[:3, 0], np.nan
    assert "without length" in geometry.fault_of(flat)
    assert "one plane" in geometry.fault_of(same)
    assert "not finite" in geometry.fault_of(broken)


def test_the_largest_shift_is_that_of_a_corner_in_voxels():
    moved, scaled = np.diag([2.0, 2.0, 4.0, 1.0]), np.diag([2.0, 2.0, 4.0, 1.0])
    moved[1, 3] += 0.5
    assert geometry.largest_shift(np.diag([2.0, 2.0, 4.0, 1.0]), moved, SHAPE) == pytest.approx(
        0.25
    )
    scaled[2, 2] = 4.1  # four steps of 0.1 mm at the far end, in voxels of 2 mm
    assert geometry.largest_shift(np.diag([2.0, 2.0, 4.0, 1.0]), scaled, SHAPE) == pytest.approx(
        0.2
    )
