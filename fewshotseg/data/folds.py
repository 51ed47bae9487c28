"""Folds for cross-fitting: every labelled case is held out once, and nothing like it is trained on then."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fewshotseg.data.look_alikes import DUPLICATE_CORRELATION, clusters
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError


def divide(
    survey: Survey,
    ids: Sequence[str],
    number: int,
    seed: int,
    threshold: float = DUPLICATE_CORRELATION,
) -> tuple[tuple[int, ...], ...]:
    """Positions in `ids`, divided into folds of nearly equal size.

    Cases of one group (patient, series) and images that are nearly the same stay together.

    Args:
      survey: of their source.
      ids: of the cases.
      number: of folds.
      seed: another one divides otherwise.
      threshold: correlation of thumbnails from which two images count as the same.

    Returns:
      `number` tuples, sorted, which together are `range(len(ids))`.

    Raises:
      InputError: fewer independent clusters than folds.
    """
    records = [survey[i] for i in ids]
    cluster = clusters(
        np.stack([record.thumbnail for record in records]),
        [record.group for record in records],
        threshold,
    )
    members: dict[int, list[int]] = {}
    for position, label in enumerate(cluster):
        members.setdefault(int(label), []).append(position)
    if len(members) < number:
        raise InputError(
            f"cross_fit.num_folds is {number}, but the {len(ids)} labelled cases of "
            f"{survey.source.name} are only {len(members)} independent ones (patients, series, "
            "look-alikes): use fewer folds."
        )

    def drawn(group):
        text = repr((survey.source.name, seed, min(ids[i] for i in group)))
        return hashlib.sha256(text.encode()).digest()

    folds: list[list[int]] = [[] for _ in range(number)]
    # The largest first, each into the smallest fold so far; those of one size in a drawn order.
    for group in sorted(members.values(), key=lambda group: (-len(group), drawn(group))):
        min(folds, key=len).extend(group)
    return tuple(tuple(sorted(fold)) for fold in folds)
