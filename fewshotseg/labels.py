"""What the numbers of a mask mean: in files what their owner chose, inside 0, 1, 2, ... and `IGNORED`."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fewshotseg.errors import InputError

IGNORED = 255  # inside: a pixel that counts nowhere, neither in a loss nor in a metric
MOST_CLASSES = 254  # of the foreground, so that a mask is uint8
HIGHEST = 65535  # value in a file


@dataclasses.dataclass(frozen=True)
class Labels:
    """Which values the masks of a data set have in their files.

    Attributes:
      ids: of the background and of every class, in the order of their names; () for 0, 1, 2, ...
      ignored: of pixels that count nowhere; -1 if there are none.
    """

    ids: tuple[int, ...] = ()
    ignored: int = -1

    def check(self, num_foreground_classes: int, block: str) -> None:
        """Compares them with the names of the classes.

        Args:
          num_foreground_classes: n, at least 1.
          block: the fields `class_names`, `class_ids` and `ignore_id` of which are at fault.

        Raises:
          InputError: not one number for the background and every class, a number twice, or one that no
            mask can hold.
        """
        if num_foreground_classes > MOST_CLASSES:
            raise InputError(
                f"{block}.class_names has {num_foreground_classes} names, but at most {MOST_CLASSES} "
                "classes are told apart: join some."
            )
        ids, wanted = self.ids, num_foreground_classes + 1
        if ids and (len(ids) != wanted or len(set(ids)) < len(ids)):
            raise InputError(
                f"{block}.class_ids is {ids}: give {wanted} different numbers, the background's first, "
                f"then one for every name in {block}.class_names."
            )
        if ids and not all(0 <= number <= HIGHEST for number in ids):
            raise InputError(f"{block}.class_ids is {ids}: use numbers from 0 to {HIGHEST}.")
        if self.ignored in (ids or range(wanted)):
            raise InputError(
                f"{block}.ignore_id is {self.ignored}, which is a class: use -1 where no pixels are to be "
                "ignored."
            )

    def values(self, num_foreground_classes: int) -> tuple[int, ...]:
        """The value in a file of the background and of every class."""
        return self.ids or tuple(range(num_foreground_classes + 1))

    def from_file(self, raw: np.ndarray, num_foreground_classes: int) -> np.ndarray:
        """Values of a file to uint8 class ids 0..n and `IGNORED`.

        Raises:
          ValueError: there are others; `args[0]` has them, sorted.
        """
        known = {value: i for i, value in enumerate(self.values(num_foreground_classes))}
        if self.ignored >= 0:
            known[self.ignored] = IGNORED
        if unknown := [value for value in np.unique(raw).tolist() if value not in known]:
            raise ValueError(unknown)
        table = np.zeros(max(known) + 1, np.uint8)
        table[list(known)] = list(known.values())
        return table[np.asarray(raw).astype(np.int64)]

    def to_file(self, mask: np.ndarray, num_foreground_classes: int) -> np.ndarray:
        """Class ids 0..n and `IGNORED` to the values of a file, uint8, or uint16 if one needs it."""
        values = self.values(num_foreground_classes)
        table = np.zeros(IGNORED + 1, np.int64)
        table[: len(values)] = values
        table[IGNORED] = max(self.ignored, 0)
        return table[mask].astype(np.uint8 if table.max() <= 255 else np.uint16)


PLAIN = Labels()


def counts(mask: np.ndarray) -> np.ndarray:
    """Bool of the same shape: which pixels count."""
    return np.asarray(mask) != IGNORED


def is_foreground(mask: np.ndarray) -> np.ndarray:
    """Bool of the same shape: which pixels are of some class."""
    return (np.asarray(mask) > 0) & counts(mask)


def of_source(source) -> Labels:
    """The labels of a `CaseSource`; most have none of their own."""
    return getattr(source, "labels", PLAIN)


def as_labels(ids: Sequence[int], ignored: int) -> Labels:
    """Of the fields of a configuration, or of a file."""
    return Labels(tuple(map(int, ids)), int(ignored))
