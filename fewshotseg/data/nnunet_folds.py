"""nnU-Net's `splits_final.json`: a list of folds, each `{"train": [...], "val": [...]}`.

There, a fold's 'val' cases are what a model is measured on; here these are the test cases, and training and
validation cases are drawn from 'train'. Written likewise, so that nnU-Net trains on all cases that a run
had labels of and is measured on the same ones.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Sequence

from fewshotseg import files
from fewshotseg.data import split_files
from fewshotseg.errors import InputError


def without_channel(name: str) -> str:
    """CASE, of `CASE_0000`: what it is called in a list of folds, and what its labels are called."""
    return re.sub(r"_\d{4}$", "", name)


def read(path: str | os.PathLike[str], fold: int, known: Sequence[str]) -> dict | None:
    """One fold as lists for `splits.few_shot_split`; None if the file is no list of folds.

    Args:
      path: of the file.
      fold: which one, from 0.
      known: all ids.

    Raises:
      InputError: no such fold, another form, unknown ids, or a case on both sides.
    """
    path = pathlib.Path(path)
    try:
        folds = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else None
    except (OSError, ValueError):
        return None  # who reads lists says what is wrong with it
    if not isinstance(folds, list):
        return None
    if not 0 <= fold < len(folds):
        raise InputError(f"data.fold is {fold}, but {path} has {len(folds)} folds, from 0.")
    try:
        parts = [[str(name) for name in folds[fold][part]] for part in ("train", "val")]
    except (KeyError, TypeError) as error:
        raise InputError(
            f'{path}: fold {fold} is not of the form {{"train": ["id", ...], "val": ["id", ...]}}.'
        ) from error
    names = {case_id: case_id for case_id in known}
    count = collections.Counter(map(without_channel, known))
    for case_id in known:
        name = without_channel(case_id)
        if count[name] == 1:
            names.setdefault(name, case_id)
    origin = f"{path} (fold {fold})"
    pool, test = (
        split_files.resolve_ids([names.get(i, i) for i in part], known, origin) for part in parts
    )
    if both := sorted({*pool} & {*test}):
        raise InputError(f"{origin}: 'train' and 'val' share {both[0]!r}: make the folds again.")
    return {"pool": pool, "test": test}


def write(
    path: str | os.PathLike[str], split: split_files.Split, known: Sequence[str] = ()
) -> None:
    """Writes a split as the only fold: 'train' has its training and validation cases, 'val' the test's.

    Args:
      path: of the file.
      split: which cases.
      known: all ids. Where these differ in their last four digits alone, as IMG_0001 and IMG_0002 do, the
        digits are no channel and stay.

    Raises:
      InputError: the file cannot be written.
    """
    parts = {"train": (*split.train, *split.validation), "val": split.test}
    every = {*known, *parts["train"], *parts["val"]}
    channels = len(set(map(without_channel, every))) == len(every)
    names = {case_id: without_channel(case_id) if channels else case_id for case_id in every}
    fold = {part: sorted(names[i] for i in ids) for part, ids in parts.items()}
    files.write_json(path, [fold])
