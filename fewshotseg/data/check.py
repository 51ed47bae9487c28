"""A look at a data set before training: counts, sizes, classes, faults, the split, and a picture."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fewshotseg import files
from fewshotseg.data import canvas, look_alikes
from fewshotseg.data.cases import Data
from fewshotseg.data.split_files import Split
from fewshotseg.data.survey import Record, Survey
from fewshotseg.data.tiles import Tiles
from fewshotseg.errors import InputError
from fewshotseg.types import Case, CaseSource

SHEET_CASES = 64
LISTED = 50  # faults in the printed table; check.json has all
_SHEET_SIZE = 320  # longer side in memory; the sheet's tiles are smaller
_TINY = 8  # pixels; a side below is no picture
_ENLARGED = 1.5  # from this factor on it is worth a word

Report = dict[str, Any]


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
      source: the data set; if it has `faults` of its own (see `FolderSource`), they are taken over.
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
    root = f"{getattr(source, 'root', '')}/"
    report = summarise(survey, split, {key: text.replace(root, "") for key, text in faults.items()})
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
      'empty_masks', 'vanishing', 'flat', 'tiny', 'duplicates' (`[id, id, correlation]`), 'faults'
      (`{'id', 'message'}`), 'notes' (count by text), 'warnings', 'split' ('train', 'validation',
      'test' and further test sets: 'cases' and, of test sets, 'clusters') and 'split_notes'.
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
        "vanishing": [i for i, record in records.items() if record.vanishes],
        "flat": [i for i, record in records.items() if record.flat],
        "tiny": [i for i, record in records.items() if min(record.shape[:-1]) < _TINY],
        "duplicates": [[ids[i], ids[j], round(value, 4)] for i, j, value in pairs],
        "notes": dict(collections.Counter(n for r in seen for n in r.notes).most_common()),
    }
    report["warnings"] = _warnings(report, shares)
    if not shares.any():
        message = (
            f"data set {source.name!r}: none of the {len(records)} masks has any foreground: "
            "export the masks again with the object as 255 (or class ids 1, 2, ...)."
        )
        report["faults"].append({"id": "", "message": message})
    return report


def format_report(report: Report) -> str:
    """The report as a table of plain text, without a line break at the end."""
    complete = report["loaded"] + len(report["faults"]) >= report["count"]
    read = f"of which {report['loaded']} {'can be' if complete else 'were'} read"
    rows = [("data set", report["name"]), ("cases", f"{report['count']}, {read}")]
    if report["loaded"]:
        for key in [key for key in ("depth", "height", "width") if key in report]:
            voxels = "voxels" if "depth" in report else "pixels"
            rows.append((key, _range_text(report[key], "{:g}") + f" {voxels}"))
        if "spacing" in report:
            axes = (_range_text(of_axis, "{:.3g}") for of_axis in report["spacing"])
            rows.append(("spacing", "; ".join(axes) + " mm"))
        channels = {"1": "grey", "3": "colour"}
        counts = [f"{n} {channels[c]}" for c, n in report["channels"].items()]
        rows.append(("images", ", ".join(counts)))
        if report["groups"]:
            rows.append(("groups", f"{report['groups']} (patients or series)"))
        for name, of_class in report["classes"].items():
            where = f"in {of_class['images']} of {report['loaded']} masks"
            if of_class["images"]:
                where = _range_text(of_class["share"], "{:.2%}") + " of the pixels, " + where
            rows.append((f"class {name}", where))
        rows.append(("empty masks", _ids_text(report["empty_masks"])))
        rows.append((f"vanish at {_size_text(report)}", _ids_text(report["vanishing"])))
        pairs = [f"{a} = {b} ({c:.3f})" for a, b, c in report["duplicates"]]
        rows.append(("look-alikes", _ids_text(pairs)))
        rows += [("note", f"{count} x {note}") for note, count in report["notes"].items()]
    for part, found in report["split"].items():
        text = f"{found['cases']} case{'s' * (found['cases'] != 1)}"
        if found.get("clusters", found["cases"]) < found["cases"]:
            text += f" in {found['clusters']} clusters (patients, series, look-alikes)"
        rows.append((part, text))
    rows += [("split", note) for note in report["split_notes"]]
    rows += [("WARNING", text) for text in report["warnings"]]
    faults = report["faults"]
    rows.append(("faults", str(len(faults)) if faults else "none"))
    rows += [("FAULT", fault["message"]) for fault in faults[:LISTED]]
    if len(faults) > LISTED:
        rows.append(("FAULT", f"... and {len(faults) - LISTED} more in check.json"))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


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


def _size_text(report: Mapping[str, Any]) -> str:
    size = report["image_size"]
    return f"{size[0]} px" if len(set(size)) == 1 else " x ".join(map(str, size)) + " px"


def _warnings(report: Mapping[str, Any], shares: np.ndarray) -> list[str]:
    warnings = []
    if np.median(shares.sum(axis=1)) > 0.5:
        warnings.append(
            "more than half of the pixels are foreground in most masks: are the masks inverted?"
        )
    absent = [name for name, found in report["classes"].items() if not found["images"]]
    if absent and shares.any():
        warnings.append(f"no mask shows the class {', '.join(absent)}")
    if len(report["channels"]) > 1:
        warnings.append("grey and colour images are mixed: all are converted to one kind")
    if report["flat"]:
        warnings.append(f"images of a single grey value or colour: {_ids_text(report['flat'])}")
    if report["tiny"]:
        warnings.append(f"images with a side below {_TINY} pixels: {_ids_text(report['tiny'])}")
    height, width = report["height"]["median"], report["width"]["median"]
    larger = min(report["image_size"][-2] / height, report["image_size"][-1] / width)
    if larger >= _ENLARGED and not report["tiles"]:
        warnings.append(
            f"most images are enlarged, from {height:g} x {width:g} pixels to "
            f"{_size_text(report)}: a smaller image_size shows as much and trains faster"
        )
    if report["vanishing"]:
        warnings.append(
            f"a class disappears at {_size_text(report)} from some masks "
            f"({len(report['vanishing'])}): train at a larger image_size"
        )
    if report["duplicates"]:
        warnings.append(
            f"pairs of images that look alike, as they are or mirrored: "
            f"{len(report['duplicates'])}; a draw keeps each together, but look whether one of "
            "them should go"
        )
    return warnings


def _range(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    if len(values) == 0:
        return None
    return {name: float(getattr(np, name)(values)) for name in ("min", "median", "max")}


def _range_text(values: Mapping[str, float], style: str) -> str:
    low, middle, high = (style.format(values[key]) for key in ("min", "median", "max"))
    return low if low == high else f"{low} to {high}, median {middle}"


def _ids_text(ids: Sequence[str], number: int = 5) -> str:
    more = ", ..." * (len(ids) > number)
    return f"{len(ids)}: {', '.join(ids[:number])}{more}" if ids else "none"


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
