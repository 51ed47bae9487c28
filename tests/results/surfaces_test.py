"""Areas of surface elements and surface Dice, against closed forms and the package of the paper."""

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from fewshotseg.results import metrics, surfaces


def nsd(a, b, spacing, tolerance):
    (row,) = metrics.case_metrics(a.astype(int), b.astype(int), 2, spacing, tolerance)
    return row["nsd"]


def blobs(rng, shape, share):
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return smooth > np.quantile(smooth, 1 - share)


def test_areas_by_hand():
    spacing = (1.0, 2.0, 3.0)
    areas = surfaces._areas(3, spacing)
    assert areas[0] == areas[255] == 0
    # One corner: the triangle through the middles of its three edges, half as long as the spacing.
    corner = 0.5 * math.sqrt((0.5 * 1) ** 2 + (0.5 * 1.5) ** 2 + (1 * 1.5) ** 2)
    for bit in range(8):
        assert areas[1 << bit] == pytest.approx(corner)
        assert areas[255 - (1 << bit)] == pytest.approx(corner)
    # Half of the eight on one side: a flat face, the product of the other two spacings.
    codes = {axis: 0 for axis in range(3)}
    for bit, place in enumerate(itertools.product((0, 1), repeat=3)):
        for axis in range(3):
            codes[axis] |= place[axis] << bit
    for axis, area in ((0, 6.0), (1, 3.0), (2, 2.0)):
        assert areas[codes[axis]] == pytest.approx(area)
    lengths = surfaces._areas(2, (1.0, 2.0))
    assert lengths[1] == pytest.approx(0.5 * math.sqrt(5)) and sorted(lengths)[-1] == pytest.approx(
        math.sqrt(5)
    )  # both diagonals cut off


def test_a_large_ball_has_the_area_of_a_sphere():
    grid = np.indices((41, 41, 41)).transpose(1, 2, 3, 0) - 20
    ball = np.linalg.norm(grid, axis=-1) < 15
    distances, areas = surfaces.elements(ball, ball, (1.0, 1.0, 1.0))
    assert not distances.any()
    # Of a stepped ball, marching cubes sees more than the sphere, and far less than the voxels' faces.
    assert 1.0 < areas.sum() / 2 / (4 * math.pi * 15**2) < 1.12


@pytest.mark.parametrize("place", [(3, 2, 4), (0, 0, 0)], ids=["inside", "in a corner"])
def test_the_area_of_a_box_is_that_of_marching_cubes(place):
    mask, spacing = np.zeros((12, 11, 13), bool), (3.0, 0.7, 1.2)
    mask[tuple(slice(p, p + n) for p, n in zip(place, (3, 4, 5), strict=True))] = True
    found = measure.marching_cubes(np.pad(mask, 1).astype(float), 0.5, spacing=spacing)
    assert surfaces.area(mask, spacing) == pytest.approx(measure.mesh_surface_area(*found[:2]))
    assert surfaces.area(np.zeros((3, 4), bool), (1.0, 1.0)) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package: SciPy's old names
@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0), (0.5, 2.0), (1.0, 1.0, 1.0), (3.0, 0.7, 1.2)], ids=str
)
def test_like_the_package_of_the_paper(spacing):
    package = pytest.importorskip("surface_distance")
    shape, rng = (14, 13, 12)[: len(spacing)], np.random.default_rng(0)
    if len(spacing) == 3:  # all 256 neighbourhoods
        table = package.lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
        kernel = package.lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
        theirs = np.zeros(256)
        for code in range(256):
            corners = itertools.product((0, 1), repeat=3)
            theirs[code] = table[
                sum(int(kernel[c]) for b, c in enumerate(corners) if code >> b & 1)
            ]
        np.testing.assert_allclose(surfaces._areas(3, spacing), theirs, atol=1e-12)
    for share in (0.02, 0.2, 0.6):
        a, b = blobs(rng, shape, share), blobs(rng, shape, share)
        found = package.compute_surface_distances(a, b, spacing)
        for tolerance in (0.4, 1.1, 2.5):
            wanted = package.compute_surface_dice_at_tolerance(found, tolerance)
            assert nsd(a, b, spacing, tolerance) == pytest.approx(wanted, abs=1e-12)
