"""Surfaces as elements with an area, for the surface Dice as it is quoted.

A surface element lies where 2 x 2 (x 2) neighbouring pixels are not all alike. Its area is that of
the marching cubes surface between them, its length that of marching squares: through the middles of
the edges between unlike pixels, with the rarer kind apart where that is open. Of a polygon that is
not flat, those triangles count whose area is largest for cubes. This gives the areas of
`surface-distance`, the package of S. Nikolov et al., "Clinically applicable segmentation of head and
neck anatomy", JMIR 23, 2021, for every neighbourhood and spacing (tested).
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

Point = tuple[float, ...]


def elements(
    a: np.ndarray, b: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Every surface element of two masks: how far it is from the other surface, and its area.

    Args:
      a: bool `[H, W]` or `[D, H, W]`, not empty.
      b: the same.
      spacing: of the pixels along each axis.

    Returns:
      Distances in the unit of `spacing`; areas in its square, or lengths in 2-D. Those of a first.
    """
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    codes = [_codes(mask[box]) for mask in (a, b)]
    areas = _areas(a.ndim, tuple(map(float, spacing)))
    at = [(code > 0) & (code < len(areas) - 1) for code in codes]
    to = [ndimage.distance_transform_edt(~there, sampling=spacing) for there in at]
    distances = [to[1][at[0]], to[0][at[1]]]
    found = [areas[code[there]] for code, there in zip(codes, at, strict=True)]
    return np.concatenate(distances), np.concatenate(found)


def area(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Of the whole surface of a mask, in the square of the unit of `spacing` (2-D: its length).

    Args:
      mask: bool `[H, W]` or `[D, H, W]`; 0 if it is empty.
      spacing: of the pixels along each axis.
    """
    return float(_areas(mask.ndim, tuple(map(float, spacing)))[_codes(mask)].sum())


def _codes(mask: np.ndarray) -> np.ndarray:
    """Which of the 2^rank pixels around every corner are in the mask, as bits; none are beyond it."""
    padded = np.pad(mask, 1).astype(np.uint8)
    shape, code = [n - 1 for n in padded.shape], 0
    for bit, corner in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        part = tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))
        code = code + (padded[part].astype(np.int32) << bit)
    return code


@functools.cache
def _areas(rank: int, spacing: tuple[float, ...]) -> np.ndarray:
    """The area of every neighbourhood, by its code."""
    steps = np.array(spacing)
    return np.array([sum(_area(x * steps) for x in simplices) for simplices in _table(rank)])


def _area(simplex: np.ndarray) -> float:
    """Length of two points, area of three."""
    if len(simplex) == 2:
        return float(np.linalg.norm(simplex[1] - simplex[0]))
    return 0.5 * float(np.linalg.norm(np.cross(simplex[1] - simplex[0], simplex[2] - simplex[0])))


@functools.cache
def _table(rank: int) -> list[list[np.ndarray]]:
    """By code, the lines (2-D) or triangles (3-D) between unlike pixels, in units of pixels."""
    corners = list(itertools.product((0, 1), repeat=rank))
    table = []
    for code in range(2 ** len(corners)):
        inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(corners)}
        rarer = sum(inside.values()) <= len(corners) // 2
        segments = [s for face in _faces(rank) for s in _segments(face, inside, rarer)]
        if rank == 2:
            table.append([np.array(segment) for segment in segments])
        else:
            table.append([t for loop in _loops(segments) for t in _largest_triangles(loop)])
    return table


def _faces(rank: int) -> Iterator[list[tuple[int, ...]]]:
    """The squares around a neighbourhood, four corners each, in order."""
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    if rank == 2:
        yield square
        return
    for axis, side in itertools.product(range(3), (0, 1)):
        yield [(*corner[:axis], side, *corner[axis:]) for corner in square]


def _segments(face, inside, rarer: bool) -> list[tuple[Point, Point]]:
    """Lines of marching squares; of corners alike with the opposite ones alone, `rarer` are cut off."""
    values = [inside[corner] for corner in face]
    middles = [
        tuple((p + q) / 2 for p, q in zip(face[i], face[(i + 1) % 4], strict=True))
        for i in range(4)
    ]
    cuts = [middles[i] for i in range(4) if values[i] != values[(i + 1) % 4]]
    if len(cuts) < 4:
        return [tuple(cuts)] if cuts else []
    return [(middles[i - 1], middles[i]) for i in range(4) if values[i] == rarer]


def _loops(segments: Sequence[tuple[Point, Point]]) -> Iterator[list[Point]]:
    """Closed polygons of segments; every point is on two."""
    neighbours: dict[Point, list[Point]] = {}
    for p, q in segments:
        neighbours.setdefault(p, []).append(q)
        neighbours.setdefault(q, []).append(p)
    while neighbours:
        loop = [min(neighbours)]
        while following := [q for q in neighbours.pop(loop[-1]) if q in neighbours]:
            loop.append(following[0])
        yield loop


def _largest_triangles(loop: Sequence[Point]) -> list[np.ndarray]:
    """Of all ways to cut a polygon into triangles, the one with the largest area."""
    points = np.array(loop)

    def cut(first, last) -> Iterator[list[np.ndarray]]:
        if last - first < 2:
            yield []
        for middle in range(first + 1, last):
            triangle = points[[first, middle, last]]
            for left, right in itertools.product(cut(first, middle), cut(middle, last)):
                yield [*left, *right, triangle]

    # Rounded: ways of the same area differ in the last digits.
    return max(cut(0, len(points) - 1), key=lambda found: round(sum(map(_area, found)), 9))
