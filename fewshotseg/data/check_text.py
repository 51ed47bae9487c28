"""What a check says: its table and its warnings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEW = 32  # pixels of a class: with fewer, segmenters mostly miss it (docs/results.md, failures)
LISTED = 50  # faults in the printed table; check.json has all
TINY = 8  # pixels; a side below is no picture
_ENLARGED = 1.5  # from this factor on it is worth a word

Report = dict[str, Any]


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
        rows.append((f"below {FEW} pixels there", _ids_text(list(report["small"]))))
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


def warnings(report: Mapping[str, Any], shares: np.ndarray) -> list[str]:
    """What looks wrong without being a fault, a sentence each; `shares` are those of the records."""
    found = []
    if np.median(shares.sum(axis=1)) > 0.5:
        found.append(
            "more than half of the pixels are foreground in most masks: are the masks inverted?"
        )
    absent = [name for name, of in report["classes"].items() if not of["images"]]
    if absent and shares.any():
        found.append(f"no mask shows the class {', '.join(absent)}")
    if len(report["channels"]) > 1:
        found.append("grey and colour images are mixed: all are converted to one kind")
    if report["flat"]:
        found.append(f"images of a single grey value or colour: {_ids_text(report['flat'])}")
    if report["tiny"]:
        found.append(f"images with a side below {TINY} pixels: {_ids_text(report['tiny'])}")
    height, width = report["height"]["median"], report["width"]["median"]
    larger = min(report["image_size"][-2] / height, report["image_size"][-1] / width)
    if larger >= _ENLARGED and not report["tiles"]:
        found.append(
            f"most images are enlarged, from {height:g} x {width:g} pixels to "
            f"{_size_text(report)}: a smaller image_size shows as much and trains faster"
        )
    if report["vanishing"]:
        found.append(
            f"a class disappears at {_size_text(report)} from some masks "
            f"({len(report['vanishing'])}): train at a larger image_size"
        )
    if len(report["small"]) > 0.05 * report["loaded"]:
        found += _too_small(report)
    if report["duplicates"]:
        found.append(
            f"pairs of images that look alike, as they are or mirrored: "
            f"{len(report['duplicates'])}; a draw keeps each together, but look whether one of "
            "them should go"
        )
    return found


def _too_small(report: Mapping[str, Any]) -> list[str]:
    """What to try so that half of the small ones have enough; nothing where the images show no more."""
    size = report["image_size"]
    medians = [report[axis]["median"] for axis in ("depth", "height", "width")[-len(size) :]]
    factor = (FEW / np.median(list(report["small"].values()))) ** (1 / len(size))
    larger = [16 * math.ceil(n * factor / 16) for n in size]
    square = len({*size}) == 1 and len(size) == 2
    text = str(larger[0]) if square else f'"{tuple(larger)}"'.replace(" ", "")
    remedies = []
    if all(n < _ENLARGED * m for n, m in zip(larger, medians, strict=True)):
        remedies.append(f"--config.data.image_size={text}")
    if all(n < m for n, m in zip(size, medians, strict=True)):
        remedies.append("--config.data.fit=tiles")
    if report["tiles"] or not remedies:
        return []
    return [
        f"a class has fewer than {FEW} pixels at {_size_text(report)} in {len(report['small'])} masks, and "
        f"will mostly be missed there: try {', or '.join(remedies)}"
    ]


def _size_text(report: Mapping[str, Any]) -> str:
    size = report["image_size"]
    return f"{size[0]} px" if len(set(size)) == 1 else " x ".join(map(str, size)) + " px"


def _range_text(values: Mapping[str, float], style: str) -> str:
    low, middle, high = (style.format(values[key]) for key in ("min", "median", "max"))
    return low if low == high else f"{low} to {high}, median {middle}"


def _ids_text(ids: Sequence[str], number: int = 5) -> str:
    more = ", ..." * (len(ids) > number)
    return f"{len(ids)}: {', '.join(ids[:number])}{more}" if ids else "none"
