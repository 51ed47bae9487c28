"""The axes of a volume in a patient: from how a file stores them to one canonical order, and back.

World coordinates are those of NIfTI, in mm: x to the patient's right, y to the front,
z to the head (RAS+). The canonical axes are those of a radiologist's screen: `D` runs to the
head, `H` to the back, `W` to the patient's left, so that every `[H, W]` is an axial slice, upright.

An affine may lie between two orders, near 45 degrees. So the way there is computed once, from the
file, and kept: the way back is its inverse, never computed anew from a result.
"""

import dataclasses
import itertools

import numpy as np

# World axis and direction of each canonical axis.
_DIRECTIONS = ((2, 1.0), (1, -1.0), (0, -1.0))


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How a stored array becomes a canonical one: axes are put in order, then some are reversed.

    Attributes:
      axes: the stored axis that becomes canonical axis 0, 1, 2.
      flips: which canonical axes are then reversed.
    """

    axes: tuple[int, ...] = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """An array `[X, Y, Z, ...]` as stored, to `[D, H, W, ...]`: a view, no value changes."""
        return np.moveaxis(array, self.axes, (0, 1, 2))[self._reverse()]

    def to_stored(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_canonical`."""
        return np.moveaxis(array[self._reverse()], (0, 1, 2), self.axes)

    def canonical_affine(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The affine of the canonical array.

        Args:
          affine: float `[4, 4]`, from indices of the stored array to mm.
          shape: of the stored array, three numbers.
        """
        return np.asarray(affine, np.float64) @ self._to_stored_indices(shape)

    def _reverse(self):
        return tuple(slice(None, None, -1 if flip else None) for flip in self.flips)

    def _to_stored_indices(self, shape) -> np.ndarray:
        """Matrix `[4, 4]` from canonical indices to stored ones."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for canonical, (stored, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[stored, canonical] = -1.0 if flip else 1.0
            matrix[stored, 3] = shape[stored] - 1.0 if flip else 0.0
        return matrix


def closest_orientation(affine: np.ndarray) -> Orientation:
    """The order and directions of the stored axes that come closest to the canonical ones.

    Of the six orders, the one with the largest sum of cosines between the axes: every stored axis
    gets another canonical one, at any angle.

    Args:
      affine: float `[4, 4]`, from indices of the stored array to mm in RAS+; see `fault_of`.
    """
    directions = np.asarray(affine, np.float64)[:3, :3]
    directions = directions / np.linalg.norm(directions, axis=0)
    return _closest(np.stack([sign * directions[world] for world, sign in _DIRECTIONS]))


def orientation_between(affine: np.ndarray, other: np.ndarray) -> Orientation:
    """The order and directions that come closest from one grid of voxels to another one.

    Args:
      affine: float `[4, 4]` of the array to arrive at.
      other: float `[4, 4]` of the array to start from; `to_canonical` of the result turns that one.
    """
    matrices = (np.asarray(a, np.float64)[:3, :3] for a in (affine, other))
    target, start = (m / np.linalg.norm(m, axis=0) for m in matrices)
    return _closest(np.linalg.solve(target, start))


def _closest(cosines: np.ndarray) -> Orientation:
    """Of cosines `[wanted axis, stored axis]`: the order with the largest sum, and its signs."""
    orders = itertools.permutations(range(3))
    axes = max(orders, key=lambda order: sum(abs(cosines[i, j]) for i, j in enumerate(order)))
    return Orientation(axes, tuple(bool(cosines[i, j] < 0) for i, j in enumerate(axes)))


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Distance in mm between neighbouring voxels along each axis of an array with this affine."""
    return tuple(np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0).tolist())


def fault_of(affine: np.ndarray) -> str:
    """Why an affine places no volume in space; '' if it does."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return "holds values that are not finite"
    if min(spacing_of(affine)) <= 0:
        return "has an axis without length"
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return "has axes in one plane" if abs(np.linalg.det(directions)) < 1e-3 else ""


def largest_shift(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines put a corner of one volume apart, in voxels of the first: the largest.

    Args:
      affine: float `[4, 4]`.
      other: likewise.
      shape: of the array that both are about.
    """
    corners = np.array(list(itertools.product(*((0.0, n - 1.0) for n in shape), (1.0,))))
    apart = np.linalg.norm((corners @ (np.asarray(affine) - np.asarray(other)).T)[:, :3], axis=1)
    return float(apart.max() / min(spacing_of(affine)))
