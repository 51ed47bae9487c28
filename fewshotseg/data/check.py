"""A look at a data set before training: counts, sizes, classes, faults, the split, and a picture."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from fewshotseg import files
from fewshotseg.data import canvas, look_alikes
from fewshotseg.data.cases import Data
from fewshotseg.data.check_text import FEW, TINY, Report, format_report, warnings
from fewshotseg.data.split_files import Split
from fewshotseg.data.survey import Record, Survey
from fewshotseg.data.tiles import Tiles
from fewshotseg.errors import InputError
from fewshotseg.types import Case, CaseSource

SHEET_CASES = 64
_SHEET_SIZE = 320  # longer side in memory; the sheet's tiles are smaller


def check_source(
    source: CaseSource,
    output_dir: str | pathlib.Path,
    image_size: canvas.Size,
    quiet: bool = False,
    tiles: Tiles | None = None,
    draw: Callable[[Survey], Split] | None = None,
) -> Report:
    """Reads every case, tries the split, prints a table, writes `check.json` and `contact_sheet.png`.

    Faults are collected, not raised: the caller looks at `report['faults']`.

    Args:
      source: the data set; its own `faults` and `notes` are taken over, if it has any (see `FolderSource`).
      output_dir: created if need be.
      image_size: of the network, in pixels: objects that vanish at this size are reported.
      quiet: do not print the table or a progress bar.
      tiles: how networks see cases, if not squashed.
      draw: makes the split that training would make, of the cases that can be read.

    Returns:
      See `summarise`.

    Raises:
      InputError: the output folder cannot be written.
    """
    output = pathlib.Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be created ({error.strerror}).") from error
    shown = _evenly(source.ids, SHEET_CASES)
    survey, sheet = Survey(source, image_size, tiles), []
    faults = dict(getattr(source, "faults", {}))
    for case_id in tqdm(source.ids, desc="check", leave=False, disable=quiet or None):
        try:
            case = source.load(case_id)
        except InputError as error:
            faults.setdefault(case_id, str(error))
            continue
        survey.see(case)
        if case_id in shown:
            sheet.append(_shrink(case))
    split = None
    if draw and survey.records:
        try:
            split = draw(_readable(survey))
        except InputError as error:
            faults["split"] = f"split of the cases that can be read: {error}"
    if root := getattr(source, "root", ""):
        faults = {key: text.removeprefix(f"{root}/") for key, text in faults.items()}
    report = summarise(survey, split, faults)
    files.write_json(output / "check.json", report)
    if sheet:
        from fewshotseg import figures  # Matplotlib is slow to import and only drawn with here

        figures.contact_sheet(sheet, output / "contact_sheet.png", columns=8)
    if not quiet:
        print(format_report(report))
        print(f"\nwritten: {output / 'check.json'}")
        if sheet:
            count = f"{len(sheet)} of {len(survey.records)} cases"
            print(f"look at: {output / 'contact_sheet.png'} ({count})")
    return report


def describe(data: Data) -> str:
    """What a training is about to use, in the words of the check: for the console."""
    return format_report(summarise(data.survey, data.split))


def summarise(
    survey: Survey, split: Split | None = None, faults: Mapping[str, str] | None = None
) -> Report:
    """Counts of all cases that were read.

    Returns:
      A dictionary that JSON can hold: 'name', 'count', 'loaded', 'image_size' (`[H, W]`), 'height'
      and 'width' ('min', 'median', 'max'), of volumes also 'depth' and 'spacing' (in mm, likewise, one
      per axis), 'channels' (images by number of channels), 'classes' (by
      name: 'images' that show the class, and 'share' of the pixels in these), 'groups',
      'empty_masks', 'vanishing', 'small' (pixels by id), 'flat', 'tiny', 'duplicates' (`[id, id,
      correlation]`), 'faults' (`{'id', 'message'}`), 'notes' (count by text), 'warnings', 'split'
      ('train', 'validation', 'test' and further test sets: 'cases' and, of test sets, 'clusters') and
      'split_notes'.
    """
    source, records = survey.source, dict(sorted(survey.records.items()))
    report: Report = {
        "name": source.name,
        "count": len(source.ids),
        "loaded": len(records),
        "image_size": list(canvas.as_size(survey.size)),
        "tiles": dataclasses.asdict(survey.tiles) if survey.tiles else None,
        "faults": [{"id": key, "message": text} for key, text in (faults or {}).items()],
        "warnings": [],
        "split": _count_split(split) if split else {},
        "split_notes": list(split.notes) if split else [],
    }
    if not records:
        return report
    ids, seen = list(records), list(records.values())
    shares = np.stack([record.share for record in seen])
    pairs = look_alikes.near_duplicates(np.stack([record.thumbnail for record in seen]))
    channels = collections.Counter(str(record.shape[-1]) for record in seen)
    report |= {
        **_sizes(seen),
        "channels": dict(sorted(channels.items())),
        "groups": len({record.group for record in seen} - {""}),
        "classes": {
            name: {
                "images": int((shares[:, index] > 0).sum()),
                "share": _range(shares[shares[:, index] > 0, index]),
            }
            for index, name in enumerate(source.class_names)
        },
        "empty_masks": [ids[i] for i in np.flatnonzero(shares.sum(axis=1) == 0)],
        "vanishing": [i for i, record in records.items() if record.fewest == 0],
        "small": {i: r.fewest for i, r in records.items() if 0 < (r.fewest or 0) < FEW},
        "flat": [i for i, record in records.items() if record.flat],
        "tiny": [i for i, record in records.items() if min(record.shape[:-1]) < TINY],
        "duplicates": [[ids[i], ids[j], round(value, 4)] for i, j, value in pairs],
        "notes": dict(collections.Counter(n for r in seen for n in r.notes).most_common()),
    }
    notes = [n for n in getattr(source, "notes", ()) if n not in report["split_notes"]]
    report["warnings"] = notes + warnings(report, shares)
    if not shares.any():
        message = (
            f"data set {source.name!r}: none of the {len(records)} masks has any foreground: "
            "export the masks again with the object as 255 (or class ids 1, 2, ...)."
        )
        report["faults"].append({"id": "", "message": message})
    return report


def _sizes(seen: Sequence[Record]) -> Report:
    """'height' and 'width', and of volumes 'depth' and 'spacing'."""
    sizes = {
        "height": _range([record.shape[-3] for record in seen]),
        "width": _range([record.shape[-2] for record in seen]),
    }
    if any(len(record.shape) == 4 for record in seen):
        sizes["depth"] = _range([record.shape[0] for record in seen])
    spacings = [record.spacing for record in seen if record.spacing]
    if spacings:
        sizes["spacing"] = [_range(of_axis) for of_axis in zip(*spacings, strict=True)]
    return sizes


def _count_split(split: Split) -> Report:
    counts = {part: {"cases": len(getattr(split, part))} for part in ("train", "validation")}
    for name, numbers in split.clusters.items():
        name = name if name == "test" else f"test set {name}"
        counts[name] = {"cases": len(numbers), "clusters": len(set(numbers.values()))}
    return counts


@dataclasses.dataclass(frozen=True)
class _Readable:
    """A source without the cases that cannot be read."""

    name: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    official_splits: Mapping[str, tuple[str, ...]]
    load: Callable[[str], Case]


def _readable(survey: Survey) -> Survey:
    source = survey.source
    known = {
        part: tuple(case_id for case_id in ids if case_id in survey.records)
        for part, ids in source.official_splits.items()
    }
    ids = tuple(sorted(survey.records))
    inner = _Readable(source.name, source.class_names, ids, known, source.load)
    readable = Survey(inner, survey.size, survey.tiles)
    readable.records = survey.records
    return readable


def _range(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    return {name: float(getattr(np, name)(values)) for name in ("min", "median", "max")}


def _evenly(ids: Sequence[str], number: int) -> set[str]:
    indices = np.linspace(0, len(ids) - 1, min(number, len(ids))).round().astype(int)
    return {ids[index] for index in indices}


def _shrink(case: Case) -> Case:
    """A copy small enough that many fit into memory; every pixel of it is one of the original's."""
    steps = [max(1, -(-side // _SHEET_SIZE)) for side in case.mask.shape]
    if case.mask.ndim == 2:
        steps = [max(steps)] * 2
    every = tuple(slice(None, None, step) for step in steps)
    return dataclasses.replace(
        case,
        image=np.rint(case.image[every]).astype(np.uint8),
        mask=case.mask[every].copy(),
        spacing=tuple(s * step for s, step in zip(case.spacing, steps, strict=False)),
        affine=None,
    )
