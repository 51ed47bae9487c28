"""What a split and a check need to know of every case, from reading each image once."""

import dataclasses

import numpy as np

from fewshotseg import labels
from fewshotseg.data import canvas, look_alikes
from fewshotseg.data.tiles import Tiles
from fewshotseg.types import Case, CaseSource


@dataclasses.dataclass(frozen=True)
class Record:
    """What remains of a case when its pixels are gone.

    Attributes:
      shape: `(*spatial, C)` of the image.
      group: patient or series; '' if unknown.
      notes: conversions, as in `Case`.
      thumbnail: float32 `[24 * 24]`, see `look_alikes`.
      share: float `[number of classes]`, of the pixels that count; the first class has id 1.
      fewest: pixels of the class, of those in the mask, that has fewest at the size of the networks; None
        of an empty mask.
      flat: all pixels of the image have one value.
      spacing: as in `Case`.
    """

    shape: tuple[int, ...]
    group: str
    notes: tuple[str, ...]
    thumbnail: np.ndarray
    share: np.ndarray
    fewest: int | None
    flat: bool
    spacing: tuple[float, ...] = ()


class Survey:
    """The records of a source's cases; each is read when it is first asked for.

    Args:
      source: of the cases.
      size: of the networks' canvas, for `Record.fewest`.
      tiles: how networks see cases, if not squashed to a canvas.
    """

    def __init__(self, source: CaseSource, size: canvas.Size = 1024, tiles: Tiles | None = None):
        self.source, self.size, self.tiles = source, size, tiles
        self.records: dict[str, Record] = {}

    def __getitem__(self, case_id: str) -> Record:
        """The record of a case.

        Raises:
          InputError: the case cannot be read.
        """
        if case_id not in self.records:
            self.see(self.source.load(case_id))
        return self.records[case_id]

    def see(self, case: Case) -> None:
        """Takes down a case that somebody has loaded."""
        num_classes = len(self.source.class_names)
        if self.tiles:
            small = self.tiles.to_network_mask(case.mask, case.spacing, case.id)
        else:
            small = canvas.to_network_mask(case.mask, self.size)
        counts, left = (_count(mask, num_classes) for mask in (case.mask, small))
        self.records[case.id] = Record(
            shape=case.image.shape,
            group=case.group,
            notes=case.notes,
            thumbnail=look_alikes.thumbnail(case.image),
            share=counts / max(labels.counts(case.mask).sum(), 1),
            fewest=int(left[counts > 0].min()) if counts.any() else None,
            flat=bool(np.ptp(case.image, axis=tuple(range(case.mask.ndim))).max() == 0),
            spacing=case.spacing,
        )


def _count(mask, num_classes):
    """Pixels of every class `[num_classes]`, the background left out."""
    return np.bincount(mask[labels.counts(mask)].ravel(), minlength=num_classes + 1)[1:]
