"""Reads run folders for the report: whatever is there, at whatever stage the run is.

A run that still trains, or one that was killed, has some of its files; a missing or half-written
file shows up as an entry in `Run.missing`, never as an exception. Only a folder that is no run at
all is an error.
"""

import collections
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fewshotseg.errors import InputError
from fewshotseg.methods import METHODS
from fewshotseg.results.report.run import Run, Threshold
from fewshotseg.runs.settings import FREE_FIELDS

NEEDED = {"case", "status", "dice", "jaccard", "hd95", "sensitivity", "precision"}
# Fields in which runs of one experiment may differ: what they train on is told by the name of the
# data and by splits.json, and how often they log changes nothing.
_SAME = (*FREE_FIELDS, "name", "seed", "log_every", "sample_every", "checkpoint_every")
_PLACES = ("images_dir", "masks_dir", "include", "split_file", "data_dir", "pairs_csv")


def read_runs(workdirs: Sequence[pathlib.Path]) -> list[Run]:
    """Reads several run folders, and names the settings in which they differ.

    Raises:
      InputError: as for `read_run`.
    """
    runs = [read_run(workdir) for workdir in workdirs]
    settings = [dict(_flatten(_fixed(run.config))) for run in runs]
    alike = collections.defaultdict(list)
    for run, values in zip(runs, settings, strict=True):
        alike[run.experiment].append(values)
    return [
        dataclasses.replace(run, variant=_variant(values, alike[run.experiment]))
        for run, values in zip(runs, settings, strict=True)
    ]


def read_run(workdir: pathlib.Path) -> Run:
    """Reads one run folder.

    Raises:
      InputError: there is no such folder, or it holds no readable config.json.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: there is no such folder. Give the --workdir of a run.")
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"{workdir}: is not the folder of a run, since it has no config.json. "
            "Give the --workdir that was given to --mode=train."
        )
    missing: list[str] = []
    config = _read_object(workdir / "config.json", missing)
    if not config:
        raise InputError(
            f"{workdir / 'config.json'}: is damaged or empty. Run --mode=train once more with this "
            "workdir, which rewrites it."
        )
    environment = _read_object(workdir / "environment.json", missing)
    splits = _read_object(workdir / "splits.json", missing)
    notes = tuple(map(str, splits.pop("notes", None) or ()))
    clusters, groups = (splits.pop(key, None) or {} for key in ("clusters", "groups"))
    splits = {role: ids for role, ids in splits.items() if isinstance(ids, list)}
    logs, evaluations, summaries = {}, {}, {}
    if (workdir / "generator" / "log.jsonl").is_file():
        logs["generator"] = read_log(workdir / "generator" / "log.jsonl")
    for method in _methods(workdir, config):
        folder = workdir / method
        if not folder.is_dir():
            missing.append(f"{method}: has not been started.")
            continue
        logs[method] = read_log(folder / "log.jsonl")
        if not logs[method]:
            missing.append(f"{method}: nothing has been logged yet.")
        found = _read_evaluations(folder / "evaluation", missing)
        for test_set, (cases, summary) in found.items():
            evaluations[method, test_set], summaries[method, test_set] = cases, summary
        if not found:
            missing.append(f"{method}: is not evaluated yet, so it has no test scores.")
    evaluations = {key: evaluations[key] for key in _in_order(evaluations, splits)}
    thresholds = _read_thresholds(workdir / "threshold.json")
    return Run(
        workdir, config, environment, splits, notes, clusters, groups, logs, evaluations,
        summaries, thresholds, tuple(missing), searches=_read_searches(workdir, logs),
        calibrations=_read_by_method(workdir, logs, "calibration.json"),
        pairs=_read_by_method(workdir, logs, "synthetic_pairs.json"),
        feedback=_read_by_method(workdir, logs, "feedback.json"),
    )  # fmt: skip


def read_log(path: pathlib.Path) -> list[dict]:
    """Records of a log.jsonl in the order of their steps; lines that are no record are left out.

    A run that was resumed repeats steps: the last record of a step and stage wins key by key.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    merged: dict[tuple, dict] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
        if isinstance(record, dict) and isinstance(record.get("step"), int | float):
            merged.setdefault((record.get("stage"), record["step"]), {}).update(record)
    return sorted(merged.values(), key=lambda record: record["step"])


def _methods(workdir: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    wanted = config.get("methods") or ()
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    return [m for m in METHODS if m in wanted or (workdir / m).is_dir()]


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {key: value for key, value in config.items() if key not in _SAME}
    evaluate = config.get("evaluate")
    if isinstance(evaluate, Mapping) and "threshold" in evaluate:  # of it, all masks are made
        fixed["evaluate"] = {"threshold": evaluate["threshold"]}
    return fixed


def _flatten(values: Mapping[str, Any], prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif key not in _PLACES:
            yield prefix + key, json.dumps(value)


def _variant(values: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> str:
    keys = dict.fromkeys(key for other in alike for key in other)
    differing = [k for k in keys if len({other.get(k) for other in alike}) > 1]
    shown = [f"{key} {values.get(key, 'unknown')}" for key in differing[:3]]
    return ", ".join(shown) + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")


def _in_order(keys, splits: Mapping[str, Any]) -> list[tuple[str, str]]:
    sets = [role.removeprefix("test/") for role in splits]
    sets += sorted({test_set for _, test_set in keys} - set(sets))
    methods = list(METHODS)
    return sorted(keys, key=lambda key: (sets.index(key[1]), methods.index(key[0])))


def _read_evaluations(folder: pathlib.Path, missing: list[str]) -> dict[str, tuple]:
    evaluations = {}
    for path in sorted(folder.glob("*/cases.json")):
        if not (path.parent / "summary.json").is_file():  # written last
            missing.append(f"{path.parent}: this evaluation did not end; run --mode=evaluate.")
            continue
        cases = _read_json(path)
        if not isinstance(cases, list) or not all(
            isinstance(case, dict) and set(case) >= NEEDED for case in cases
        ):
            missing.append(f"{path}: is damaged; run --mode=evaluate again.")
            continue
        summary = _read_json(path.parent / "summary.json")
        evaluations[path.parent.name] = cases, summary if isinstance(summary, dict) else {}
    return evaluations


def _read_searches(workdir: pathlib.Path, methods) -> dict[str, Mapping]:
    """Of the searches that have ended."""
    found = {method: _read_json(workdir / method / "search.json") for method in methods}
    return {m: r for m, r in found.items() if isinstance(r, dict) and "rounds" in r}


def _read_thresholds(path: pathlib.Path) -> dict[str, Threshold]:
    content = _read_json(path)
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Mapping):
            by_case = {i: math.nan if d is None else d for i, d in value["by_case"].items()}
            value = value.get("dice")
        else:  # runs of the first version kept the mean alone
            by_case = {}
        if isinstance(value, int | float):
            found[name] = Threshold(float(value), by_case)
    return found


def _read_by_method(workdir: pathlib.Path, methods, name: str) -> dict[str, Mapping]:
    found = {method: _read_json(workdir / method / name) for method in methods}
    return {m: values for m, values in found.items() if isinstance(values, dict)}


def _read_object(path: pathlib.Path, missing: list[str]) -> dict:
    content = _read_json(path)
    if not isinstance(content, dict):
        missing.append(f"{path.name}: is not there or damaged.")
        return {}
    return content


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
