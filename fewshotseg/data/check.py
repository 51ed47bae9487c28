"""A look at a data set before training: counts, sizes, classes, faults, and a picture of it all."""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fewshotseg.data import canvas, look_alikes
from fewshotseg.errors import InputError
from fewshotseg.types import Case, CaseSource

SHEET_CASES = 64
_SHEET_SIZE = 320  # longer side in memory; the sheet's tiles are smaller

Report = dict[str, Any]


def check_source(
    source: CaseSource, output_dir: str | pathlib.Path, image_size: int, quiet: bool = False
) -> Report:
    """Reads every case, prints a table, writes `check.json` and `contact_sheet.png`.

    Faults of single cases are collected, not raised: the caller looks at `report['faults']`.

    Args:
      source: the data set.
      output_dir: created if need be.
      image_size: of the network, in pixels: objects that vanish at this size are reported.
      quiet: do not print the table or a progress bar.

    Returns:
      A dictionary that JSON can hold: 'name', 'count', 'loaded', 'image_size', 'height' and 'width'
      ('min', 'median', 'max'), 'channels' (images by number of channels), 'classes' (by name:
      'images' that show the class, and 'share' of the pixels in these), 'groups', 'empty_masks',
      'vanishing', 'duplicates' (`[id, id, correlation]`), 'faults' (`{'id', 'message'}`), 'notes'
      (count by text), 'warnings'.

    Raises:
      InputError: the output folder cannot be written.
    """
    output = pathlib.Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be created ({error.strerror}).") from error
    shown = _evenly(source.ids, SHEET_CASES)
    records, faults, sheet = [], [], []
    for case_id in tqdm(source.ids, desc="check", leave=False, disable=quiet or None):
        try:
            case = source.load(case_id)
        except InputError as error:
            faults.append({"id": case_id, "message": str(error)})
            continue
        records.append(_examine(case, len(source.class_names), image_size))
        if case_id in shown:
            sheet.append(_shrink(case))
    report = _summarise(source, image_size, records, faults)
    try:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (output / "check.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}).") from error
    if sheet:
        from fewshotseg import figures  # Matplotlib is slow to import and only drawn with here

        figures.contact_sheet(sheet, output / "contact_sheet.png", columns=8)
    if not quiet:
        print(format_report(report))
        print(f"\nwritten: {output / 'check.json'}")
        if sheet:
            print(f"look at: {output / 'contact_sheet.png'} ({len(sheet)} of {len(records)} cases)")
    return report


def format_report(report: Report) -> str:
    """The report as a table of plain text, without a line break at the end."""
    rows = [
        ("data set", report["name"]),
        ("cases", f"{report['count']}, of which {report['loaded']} can be read"),
    ]
    if report["loaded"]:
        for key in ("height", "width"):
            rows.append((key, _range_text(report[key], "{:g}") + " pixels"))
        channels = {"1": "grey", "3": "colour"}
        counts = [f"{n} {channels[c]}" for c, n in report["channels"].items()]
        rows.append(("images", ", ".join(counts)))
        if report["groups"]:
            rows.append(("groups", f"{report['groups']} (patients or series)"))
        for name, of_class in report["classes"].items():
            share = _range_text(of_class["share"], "{:.2%}") + " of the pixels, "
            where = f"in {of_class['images']} of {report['loaded']} masks"
            rows.append((f"class {name}", (share if of_class["images"] else "") + where))
        rows.append(("empty masks", _ids_text(report["empty_masks"])))
        vanishing = f"vanish at {report['image_size']} px"
        rows.append((vanishing, _ids_text(report["vanishing"])))
        pairs = [f"{a} = {b} ({c:.3f})" for a, b, c in report["duplicates"]]
        rows.append(("look-alikes", _ids_text(pairs)))
        rows += [("note", f"{count} x {note}") for note, count in report["notes"].items()]
    rows += [("WARNING", text) for text in report["warnings"]]
    rows.append(("faults", str(len(report["faults"])) if report["faults"] else "none"))
    rows += [("FAULT", fault["message"]) for fault in report["faults"]]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _examine(case: Case, num_classes: int, image_size: int) -> dict[str, Any]:
    counts = np.bincount(case.mask.ravel(), minlength=num_classes + 1)[1:]
    small = canvas.to_network_mask(case.mask, image_size)
    left = np.bincount(small.ravel(), minlength=num_classes + 1)[1:]
    return {
        "id": case.id,
        "shape": case.image.shape,
        "group": case.group,
        "notes": case.notes,
        "share": counts / case.mask.size,
        "vanishes": bool(np.any((counts > 0) & (left == 0))),
        "thumbnail": look_alikes.thumbnail(case.image),
    }


def _summarise(source: CaseSource, image_size: int, records, faults) -> Report:
    report: Report = {
        "name": source.name,
        "count": len(source.ids),
        "loaded": len(records),
        "image_size": image_size,
        "faults": faults,
        "warnings": [],
    }
    if not records:
        return report
    ids = [record["id"] for record in records]
    shares = np.stack([record["share"] for record in records])
    thumbnails = np.stack([record["thumbnail"] for record in records])
    channels = collections.Counter(str(record["shape"][2]) for record in records)
    notes = collections.Counter(note for record in records for note in record["notes"])
    report |= {
        "height": _range([record["shape"][0] for record in records]),
        "width": _range([record["shape"][1] for record in records]),
        "channels": dict(sorted(channels.items())),
        "groups": len({record["group"] for record in records} - {""}),
        "classes": {
            name: {
                "images": int((shares[:, index] > 0).sum()),
                "share": _range(shares[shares[:, index] > 0, index]),
            }
            for index, name in enumerate(source.class_names)
        },
        "empty_masks": [ids[i] for i in np.flatnonzero(shares.sum(axis=1) == 0)],
        "vanishing": [record["id"] for record in records if record["vanishes"]],
        "duplicates": [
            [ids[i], ids[j], round(correlation, 4)]
            for i, j, correlation in look_alikes.near_duplicates(thumbnails)
        ],
        "notes": dict(notes.most_common()),
    }
    report["warnings"] = _warnings(report, shares)
    if not shares.any():
        message = (
            f"data set {source.name!r}: none of the {len(records)} masks has any foreground: "
            "export the masks again with the object as 255 (or class ids 1, 2, ...)."
        )
        faults.append({"id": "", "message": message})
    return report


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
    if report["vanishing"]:
        warnings.append(
            f"a class disappears at {report['image_size']} pixels from some masks "
            f"({len(report['vanishing'])}): train at a larger image_size"
        )
    if report["duplicates"]:
        warnings.append(
            f"pairs of images that look alike: {len(report['duplicates'])}; a draw keeps each "
            "together, but look whether one of them should go"
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
    step = max(1, -(-max(case.mask.shape) // _SHEET_SIZE))
    image, mask = case.image[::step, ::step], case.mask[::step, ::step]
    return Case(case.id, image.copy(), mask.copy(), case.group, case.notes)
