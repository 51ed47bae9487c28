"""A model on a test set: metrics per case, summaries over cases, and pictures of both ends."""

import collections
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg import figures, files
from fewshotseg.errors import InputError
from fewshotseg.results import metrics
from fewshotseg.results.predict_files import Predictor, PredictProbabilities, segment_images
from fewshotseg.types import Case, CaseSource


def evaluate(
    predict_probabilities: PredictProbabilities,
    source: CaseSource,
    case_ids: Sequence[str],
    output_dir: str | pathlib.Path,
    *,
    image_size: int,
    channels: int,
    class_names: Sequence[str],
    threshold: float = 0.5,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Segments the cases and measures the masks at the images' original size.

    Writes, under `output_dir`: cases.csv and cases.json (a row per case and class),
    examples/worst_1_ID.png ... best_4_ID.png (by Dice, with outlines of prediction and reference),
    and, last, summary.json. Files of an earlier evaluation there are replaced.

    Args:
      predict_probabilities: float32 `[B, S, S, C]` in [-1, 1] to `[B, S, S, K]` in [0, 1]; always
        called with `batch_size` images. The filling of the last batch counts nowhere.
      source: of the cases.
      case_ids: which of them.
      output_dir: made if missing.
      image_size: S, in pixels.
      channels: C, 1 or 3.
      class_names: foreground classes with ids 1, 2, ...; K is 1 for one class, else one more than
        there are classes.
      threshold: probability from which a pixel is foreground, for K = 1.
      batch_size: B.
      progress: called with the number of cases done and of all.

    Returns:
      What summary.json holds: `num_cases`, `num_empty` (references without any foreground),
      `convention` (how empty masks count), `classes` (`metrics.aggregate` by class name), `mean`
      (the same of each case's mean over classes) and the settings. Undefined numbers are NaN here
      and null in the file.

    Raises:
      InputError: no cases, a case listed twice, a case that cannot be loaded or does not fit
        `class_names`, a probability that is not finite, or an output folder that cannot be written.
    """
    case_ids, output_dir = list(case_ids), pathlib.Path(output_dir)
    if not case_ids:
        raise InputError(f"{source.name}: there are no test cases to evaluate. Check the split.")
    repeated = [case_id for case_id, n in collections.Counter(case_ids).items() if n > 1]
    if repeated:
        raise InputError(f"{source.name}: {repeated[0]} is listed twice. List each case once.")
    names = tuple(class_names)
    model = Predictor(predict_probabilities, image_size, channels, names, threshold, source.name)
    started, rows = time.perf_counter(), []
    for start in range(0, len(case_ids), batch_size):
        chunk = case_ids[start : start + batch_size]
        for case, mask in _segment_cases(model, source, chunk, batch_size):
            rows += _case_rows(case, mask, names, source.name)
        if progress is not None:
            progress(min(start + batch_size, len(case_ids)), len(case_ids))
    summary = {
        "source": source.name,
        **_summarise(rows, names),
        "unit_of_hd95": "pixels of the original image",
        "convention": metrics.CONVENTION,
        "image_size": image_size,
        "channels": channels,
        "threshold": threshold,
        "class_names": list(names),
        "seconds": round(time.perf_counter() - started, 3),
    }
    (output_dir / "summary.json").unlink(missing_ok=True)  # it says that everything is in place
    summary["examples"] = _save_examples(model, source, rows, output_dir / "examples", batch_size)
    files.write_rows(output_dir / "cases.csv", rows)
    files.write_json(output_dir / "cases.json", rows)
    files.write_json(output_dir / "summary.json", summary)
    return summary


def _segment_cases(model, source, case_ids, batch_size) -> list[tuple[Case, np.ndarray]]:
    cases = [source.load(case_id) for case_id in case_ids]
    labels = [f"{source.name}, case {case.id}" for case in cases]
    masks = segment_images(model, [case.image for case in cases], labels, batch_size)
    return list(zip(cases, masks, strict=True))


def _case_rows(case: Case, mask: np.ndarray, names, source_name: str) -> list[dict[str, Any]]:
    if case.mask.shape != mask.shape or case.mask.max(initial=0) > len(names):
        raise InputError(
            f"{source_name}, case {case.id}: the reference mask has the size {case.mask.shape} and "
            f"class ids up to {case.mask.max(initial=0)}, but the image has the size {mask.shape} "
            f"and the model knows {len(names)} class(es). Correct the mask."
        )
    height, width = mask.shape
    known = {"case": case.id, "group": case.group, "height": height, "width": width}
    measured = metrics.case_metrics(mask, case.mask, len(names) + 1)
    return [{**known, "class": names[row["class_id"] - 1], **row} for row in measured]


def _summarise(rows, names) -> dict[str, Any]:
    by_case = _rows_by_case(rows)
    groups = [case_rows[0]["group"] for case_rows in by_case.values()]
    classes = {
        name: metrics.aggregate([row for row in rows if row["class"] == name], groups)
        for name in names
    }
    means = [metrics.mean_over_classes(case_rows) for case_rows in by_case.values()]
    overall = metrics.aggregate(means, groups)
    pooled = [c["pooled_dice"] for c in classes.values() if not math.isnan(c["pooled_dice"])]
    overall["pooled_dice"] = float(np.mean(pooled)) if pooled else math.nan
    empty = sum(all(r["reference_size"] == 0 for r in group) for group in by_case.values())
    return {
        "num_cases": len(by_case),
        "num_empty": empty,
        "num_groups": len(set(groups) - {""}),
        "mean": overall,
        "classes": classes,
    }


def _rows_by_case(rows) -> dict[str, list[dict[str, Any]]]:
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    return by_case


def _choose_examples(dice: Mapping[str, float], most: int = 4) -> list[tuple[str, str]]:
    """Names such as 'worst_1' with case ids; no case twice, undefined ones left out."""
    order = sorted((i for i in dice if not math.isnan(dice[i])), key=lambda i: (dice[i], i))
    count = min(most, max(1, len(order) // 3))
    worst, rest = order[:count], order[count:]
    best, rest = rest[::-1][:count], rest[: max(0, len(rest) - count)]
    first = max(0, (len(rest) - count) // 2)
    median = rest[first : first + count]
    return [
        (f"{kind}_{number}", case_id)
        for kind, ids in (("worst", worst), ("median", median), ("best", best))
        for number, case_id in enumerate(ids, start=1)
    ]


def _save_examples(model, source, rows, folder: pathlib.Path, batch_size) -> list[dict[str, Any]]:
    dice = {i: metrics.mean_over_classes(r)["dice"] for i, r in _rows_by_case(rows).items()}
    chosen = _choose_examples(dice)
    for kind in ("worst", "median", "best"):
        for old in folder.glob(f"{kind}_*.png"):
            old.unlink()
    saved = []
    # Segmented a second time, because the masks of a large test set do not fit into memory.
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        pairs = _segment_cases(model, source, [case_id for _, case_id in part], batch_size)
        for (name, case_id), (case, mask) in zip(part, pairs, strict=True):
            file_name = f"{name}_{_safe(case_id)}.png"
            title = f"Dice {dice[case_id]:.2f}   {case_id}"
            figures.save_overlay(case.image, mask, folder / file_name, case.mask, title=title)
            saved.append({"file": f"examples/{file_name}", "case": case_id, "dice": dice[case_id]})
    return saved


def _safe(case_id: str) -> str:
    """A case id as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", case_id).strip("._")[-80:] or "case"
