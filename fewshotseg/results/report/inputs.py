"""Reads run folders for the report: whatever is there, at whatever stage the run is.

A run that still trains, or one that was killed, has some of its files; a missing or half-written
file shows up as an entry in `Run.missing`, never as an exception. Only a folder that is no run at
all is an error.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fewshotseg.errors import InputError

METHODS = ("real_only", "separate", "joint", "end2end")  # the order of tables and plots
METRICS = ("dice", "jaccard", "hd95", "sensitivity", "precision")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
      workdir: the folder.
      config: of config.json.
      environment: of environment.json, empty if missing.
      splits: case ids by role, empty if missing.
      logs: records of log.jsonl by 'generator' and method, only of what was started.
      evaluations: per method and test set, the record of every case.
      thresholds: Dice of the best grey-value threshold by test set, empty if never measured.
      missing: sentences about what is not there (yet).
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    splits: Mapping[str, list[str]]
    logs: Mapping[str, list[dict]]
    evaluations: Mapping[tuple[str, str], list[dict]]
    thresholds: Mapping[str, float]
    missing: tuple[str, ...]

    @property
    def experiment(self) -> str:
        return str(self.config.get("name") or self.workdir.name)

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "?"))

    @property
    def data(self) -> str:
        """What the images are, in a word or two; '' if the config does not tell."""
        data = self.config.get("data")
        source = data.get("source", "") if isinstance(data, Mapping) else ""
        block = data.get(source) if source else None
        block = block if isinstance(block, Mapping) else {}
        kind = f"{source} {block.get('style', '')}".strip()
        return str(block.get("name") or kind)

    @property
    def labelled(self) -> str:
        """'40 (32 training + 8 validation)', or '?' before the split was drawn."""
        if not {"train", "validation"} <= set(self.splits):
            return "?"
        train, validation = len(self.splits["train"]), len(self.splits["validation"])
        return f"{train + validation} ({train} training + {validation} validation)"


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
    logs, evaluations = {}, {}
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
        evaluations.update({(method, test_set): cases for test_set, cases in found.items()})
        if not found:
            missing.append(f"{method}: is not evaluated yet, so it has no test scores.")
    thresholds = _read_json(workdir / "threshold.json")
    thresholds = thresholds if isinstance(thresholds, dict) else {}
    thresholds = {k: v["dice"] if isinstance(v, dict) else v for k, v in thresholds.items()}
    return Run(workdir, config, environment, splits, logs, evaluations, thresholds, tuple(missing))


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


def _read_evaluations(folder: pathlib.Path, missing: list[str]) -> dict[str, list[dict]]:
    evaluations = {}
    for path in sorted(folder.glob("*/cases.json")):
        if not (path.parent / "summary.json").is_file():  # written last
            missing.append(f"{path.parent}: this evaluation did not end; run --mode=evaluate.")
            continue
        cases = _read_json(path)
        if not isinstance(cases, list) or not all(
            isinstance(case, dict) and {"case", "status", *METRICS} <= set(case) for case in cases
        ):
            missing.append(f"{path}: is damaged; run --mode=evaluate again.")
            continue
        evaluations[path.parent.name] = cases
    return evaluations


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
