"""A model on a test set: metrics per case, summaries over cases, and pictures of both ends."""

import collections
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fewshotseg import files, labels
from fewshotseg.data import canvas
from fewshotseg.errors import InputError
from fewshotseg.results import baselines, centre_lines, examples, metrics, statistics
from fewshotseg.results.predictor import Predictor, create_predictor, probabilities_of
from fewshotseg.results.trained_models import trained_methods, trained_weights
from fewshotseg.runs import log as run_log
from fewshotseg.types import Case, CaseSource

NSD_TOLERANCE = 0.01  # share of the image's diagonal
SETTINGS = ("batch_size", "nsd_tolerance", "nsd_mm", "cldice")  # of `evaluate`, in a configuration
TestSets = Mapping[str, tuple[CaseSource, Sequence[str]]]  # name -> (source, ids)


def evaluate(
    predictor: Predictor,
    source: CaseSource,
    case_ids: Sequence[str],
    output_dir: str | pathlib.Path,
    *,
    batch_size: int = 16,
    nsd_tolerance: float = NSD_TOLERANCE,
    nsd_mm: float = 0.0,
    cldice: bool = False,
    clusters: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Segments the cases and measures the masks at the images' original size.

    Writes, under `output_dir`: cases.csv and cases.json (a row per case and class),
    examples/worst_1_ID.png ... best_4_ID.png (by Dice, with outlines of prediction and reference),
    and, last, summary.json. Files of an earlier evaluation there are replaced.

    Args:
      predictor: the model; its network is always called with `batch_size` images, and the filling
        of the last batch counts nowhere.
      source: of the cases.
      case_ids: which of them.
      output_dir: made if missing.
      batch_size: of the network.
      nsd_tolerance: of the normalised surface Dice, as a share of each image's diagonal.
      nsd_mm: in mm in its place, for images that say how large their pixels are; 0 for none.
      cldice: measure clDice too, of thin structures; needs scikit-image.
      clusters: number of the set of look-alikes by case id; then the bootstrap draws clusters.
      progress: called with the number of cases done and of all.

    Returns:
      What summary.json holds: `num_cases`, `num_empty` (references without any foreground),
      `convention` (how empty masks count), `bootstrap_over` ('12 clusters'), `classes`
      (`statistics.aggregate` by class name, with `ece` and the `calibration` it comes from), `mean`
      (the same of each case's mean over classes) and the settings. Undefined numbers are NaN here
      and null in the file.

    Raises:
      InputError: no cases, a case listed twice, a case that cannot be loaded or does not fit the
        classes, a probability that is not finite, or an output folder that cannot be written.
    """
    case_ids, output_dir = list(case_ids), pathlib.Path(output_dir)
    if not case_ids:
        raise InputError(f"{source.name}: there are no test cases to evaluate. Check the split.")
    repeated = [case_id for case_id, n in collections.Counter(case_ids).items() if n > 1]
    if repeated:
        raise InputError(f"{source.name}: {repeated[0]} is listed twice. List each case once.")
    if cldice:
        centre_lines.require_skimage()
    names = predictor.class_names
    started, rows, in_mm = time.perf_counter(), [], True
    counts = np.zeros((len(names), 3, metrics.CALIBRATION_BINS))
    for start in range(0, len(case_ids), batch_size):
        chunk = [source.load(case_id) for case_id in case_ids[start : start + batch_size]]
        labels = [f"{source.name}, case {case.id}" for case in chunk]
        pixels = [case.image for case in chunk]
        spacings = [case.spacing for case in chunk]
        found = probabilities_of(predictor, pixels, labels, batch_size, spacings)
        for case, probabilities in zip(chunk, found, strict=True):
            _check_reference(case, probabilities.shape[:-1], names, source.name)
            tolerance = (nsd_mm if case.spacing else 0.0) or nsd_tolerance * _diagonal(case)
            rows += _case_rows(case, probabilities, predictor, tolerance, cldice)
            in_mm &= bool(case.spacing)
            counts += _calibration(case, probabilities, len(names))
        if progress is not None:
            progress(min(start + batch_size, len(case_ids)), len(case_ids))
    summary = {
        "source": source.name,
        "model": predictor.source,
        **_summarise(rows, names, counts, clusters),
        "unit_of_hd95": "mm" if in_mm else "pixels of the original image",
        "nsd_tolerance": (
            f"{nsd_mm:g} mm" if in_mm and nsd_mm else f"{nsd_tolerance:g} of the image's diagonal"
        ),
        "convention": metrics.CONVENTION,
        "image_size": predictor.image_size,
        "channels": predictor.channels,
        "threshold": predictor.threshold,
        "class_names": list(names),
        "seconds": round(time.perf_counter() - started, 3),
    }
    (output_dir / "summary.json").unlink(missing_ok=True)  # it says that everything is in place
    summary["examples"] = examples.save(predictor, source, rows, output_dir, batch_size)
    files.write_rows(output_dir / "cases.csv", rows)
    files.write_json(output_dir / "cases.json", rows)
    files.write_json(output_dir / "summary.json", summary)
    return summary


def evaluate_model(
    predictor: Predictor, test_sets: TestSets, folder: pathlib.Path, **settings
) -> None:
    """Measures one trained method on every test set; results go to FOLDER/evaluation/NAME.

    Args:
      predictor: the model.
      test_sets: the cases to measure it on.
      folder: of the method, in the folder of its run, whose splits.json names the clusters.
      **settings: `batch_size`, `nsd_tolerance`, `nsd_mm` and `cldice` of `evaluate`.
    """
    known = read_clusters(folder.parent)
    for name, (source, ids) in test_sets.items():
        bar = run_log.progress_bar(f"{folder.name} on {name}", len(ids), 0, unit="case")

        def progress(done, total, bar=bar):
            bar.update(done - bar.n)

        output = folder / "evaluation" / name
        more = {"clusters": statistics.of_test_set(known, name), "progress": progress, **settings}
        evaluate(predictor, source, ids, output, **more)
        bar.close()


def evaluate_run(config: Mapping[str, Any], workdir: pathlib.Path, test_sets: TestSets) -> None:
    """Evaluates every trained method of a run again.

    Args:
      config: of the run; of its `evaluate` block, `threshold`, `batch_size`, and what says which metrics.
      workdir: of the run.
      test_sets: what to measure on.

    Raises:
      InputError: nothing has been trained there.
    """
    methods = trained_methods(workdir)
    if not methods:
        raise InputError(f"{workdir} has no trained model yet: run --mode=train first.")
    settings = {key: config["evaluate"][key] for key in SETTINGS}
    (source, _) = next(iter(test_sets.values()))
    for method in methods:
        weights, origin, temperature = trained_weights(workdir / method)
        named = f"{method}, {origin}"
        predictor = create_predictor(
            config, weights, source.class_names, named, temperature, method
        )
        evaluate_model(predictor, test_sets, workdir / method, **settings)


def is_evaluated(folder: pathlib.Path, test_sets: TestSets) -> bool:
    """Whether every test set has its summary, written last."""
    return all((folder / "evaluation" / name / "summary.json").exists() for name in test_sets)


def read_clusters(workdir: pathlib.Path) -> dict[str, Any]:
    """The clusters in the splits.json of a run, see `statistics.of_test_set`; empty if it has none."""
    try:
        splits = json.loads((workdir / "splits.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return splits.get("clusters") or {}


def threshold_baseline(
    train: Sequence[Case], test_sets: TestSets, folder: pathlib.Path
) -> dict[str, float]:
    """Dice of the best single grey-value threshold of the training images, on every test set.

    Writes FOLDER/threshold.json: by test set `dice`, `threshold`, `polarity`, and `by_case`.
    """
    threshold, polarity = baselines.best_threshold(train)
    results = {}
    for name, (source, ids) in test_sets.items():
        by_case = {i: baselines.threshold_dice(source.load(i), threshold, polarity) for i in ids}
        defined = [dice for dice in by_case.values() if not math.isnan(dice)]
        dice = float(np.mean(defined)) if defined else math.nan
        results[name] = {"dice": dice, "threshold": threshold, "polarity": polarity}
        results[name]["by_case"] = by_case
    files.write_json(folder / "threshold.json", results)
    return {name: result["dice"] for name, result in results.items()}


def _check_reference(case: Case, shape, names, source_name: str) -> None:
    highest = case.mask[labels.counts(case.mask)].max(initial=0)
    if case.mask.shape != shape or highest > len(names):
        raise InputError(
            f"{source_name}, case {case.id}: the reference mask has the size {case.mask.shape} and "
            f"class ids up to {highest}, but the image has the size {shape} "
            f"and the model knows {len(names)} class(es). Correct the mask."
        )


def _diagonal(case: Case) -> float:
    """Of an image: in mm, or in pixels where nothing says how large they are."""
    spacing = case.spacing or (1.0,) * case.mask.ndim
    return math.hypot(*np.multiply(case.mask.shape, spacing))


def _case_rows(case: Case, probabilities, predictor, tolerance, thin) -> list[dict[str, Any]]:
    mask = canvas.probabilities_to_mask(probabilities, predictor.threshold)
    names = predictor.class_names
    sizes = dict(zip(("depth", "height", "width")[-mask.ndim :], mask.shape, strict=True))
    known = {"case": case.id, "group": case.group, **sizes}
    spacing = case.spacing or (1.0,) * mask.ndim
    measured = metrics.case_metrics(mask, case.mask, len(names) + 1, spacing, tolerance, thin)
    return [{**known, "class": names[row["class_id"] - 1], **row} for row in measured]


def _calibration(case: Case, probabilities, num_classes: int) -> np.ndarray:
    """`metrics.calibration_counts` of every class, `[classes, 3, bins]`."""
    foreground = probabilities if probabilities.shape[-1] == 1 else probabilities[..., 1:]
    counted = labels.counts(case.mask)
    foreground, mask = foreground[counted], case.mask[counted]
    return np.stack(
        [metrics.calibration_counts(foreground[:, k], mask == k + 1) for k in range(num_classes)]
    )


def _summarise(rows, names, counts, clusters) -> dict[str, Any]:
    by_case = metrics.rows_by_case(rows)
    groups = {case_id: case_rows[0]["group"] for case_id, case_rows in by_case.items()}
    units, over = statistics.units_of(list(by_case), groups, clusters)
    aggregate = functools.partial(statistics.aggregate, units=units)
    classes = {n: aggregate([row for row in rows if row["class"] == n]) for n in names}
    for name, of_class in zip(names, counts, strict=True):
        number, probability, hits = of_class
        classes[name]["ece"] = metrics.expected_calibration_error(of_class)
        classes[name]["calibration"] = {
            "pixels": number.tolist(),
            "probability": [metrics.ratio(*pair) for pair in zip(probability, number, strict=True)],
            "frequency": [metrics.ratio(*pair) for pair in zip(hits, number, strict=True)],
        }
    overall = aggregate([metrics.mean_over_classes(case_rows) for case_rows in by_case.values()])
    for key in ("pooled_dice", "ece"):
        defined = [c[key] for c in classes.values() if not math.isnan(c[key])]
        overall[key] = float(np.mean(defined)) if defined else math.nan
    empty = sum(all(r["reference_size"] == 0 for r in group) for group in by_case.values())
    return {
        "num_cases": len(by_case),
        "num_empty": empty,
        "num_groups": len(set(groups.values()) - {""}),
        "bootstrap_over": over,
        "mean": overall,
        "classes": classes,
    }
