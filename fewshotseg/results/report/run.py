"""What a report knows of one run."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fewshotseg.methods import METHODS, Method, resolve


class Experiment(NamedTuple):
    """What runs must share to be repetitions (seeds) of one another.

    `variant` names the settings, such as 'train.num_steps 400', in which runs of the same name,
    data and number of labelled images differ; '' if they do not.
    """

    name: str
    data: str
    labelled: str
    variant: str = ""

    @property
    def title(self) -> str:
        known = self.data and self.data not in self.name
        name = f"{self.name} ({self.data})" if known else self.name
        return f"{name}, {self.variant}" if self.variant else name


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The best grey-value threshold on a test set: mean Dice, and Dice by case if it was kept."""

    dice: float
    by_case: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
      workdir: the folder.
      config: of config.json.
      environment: of environment.json, empty if missing.
      splits: case ids by role, empty if missing.
      notes: what a user must know of the split.
      clusters: of splits.json, see `statistics.of_test_set`; the number of the set of cases that are
        of one patient or series, or look alike.
      groups: likewise, patient or series.
      logs: records of log.jsonl by 'generator' and method, only of what was started.
      evaluations: per method and test set, the record of every case; test sets in the order of the
        splits, methods in that of `METHODS`.
      summaries: likewise, of summary.json.
      thresholds: of the best grey-value threshold by test set, empty if never measured.
      missing: sentences about what is not there (yet).
      variant: see `Experiment`.
      searches: by method, what its search for outer variables found (`training/search.py`).
      calibrations: of calibration.json, by method.
      pairs: of synthetic_pairs.json, by method.
      feedback: of feedback.json, by method: what it made of people's ratings.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    splits: Mapping[str, list[str]]
    notes: tuple[str, ...]
    clusters: Mapping[str, Any]
    groups: Mapping[str, Any]
    logs: Mapping[str, list[dict]]
    evaluations: Mapping[tuple[str, str], list[dict]]
    summaries: Mapping[tuple[str, str], Mapping]
    thresholds: Mapping[str, Threshold]
    missing: tuple[str, ...]
    variant: str = ""
    searches: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    calibrations: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    feedback: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
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
        """'40 (32 training + 8 validation)', '40 (all training)', or '?' before the split was drawn."""
        if not {"train", "validation"} <= set(self.splits):
            return "?"
        train, validation = len(self.splits["train"]), len(self.splits["validation"])
        parts = f"{train} training + {validation} validation" if validation else "all training"
        return f"{train + validation} ({parts})"

    @property
    def holds_none_out(self) -> bool:
        """Whether all labelled images were trained on (data.validate='none')."""
        return bool(self.splits.get("train")) and not self.splits.get("validation", True)

    @property
    def experiment(self) -> Experiment:
        return Experiment(self.name, self.data, self.labelled, self.variant)

    @property
    def methods(self) -> tuple[str, ...]:
        """Of the configuration, in its order."""
        wanted = self.config.get("methods") or ()
        return (wanted,) if isinstance(wanted, str) else tuple(wanted)

    def steps(self, method: str) -> int | None:
        """Steps that the method was trained for, as far as its log tells."""
        log = self.logs.get(method)
        return int(log[-1]["step"]) if log else None

    def row(self, method: str) -> Method:
        """The row of a method, its sources of pairs named."""
        pairs = self.config.get("pairs")
        sources = pairs.get("sources") if isinstance(pairs, Mapping) else None
        return resolve(METHODS[method], sources or ())

    def seconds(self, method: str) -> float:
        """Time of the method's training, of the generator's if it draws, of its search if it has one."""
        stages = [method] + (["generator"] if self.row(method).draws else [])
        ends = [self.logs.get(stage) or [{}] for stage in stages]
        trials = self.searches.get(method, {}).get("trials", ())
        ends = [float(log[-1].get("seconds", math.nan)) for log in ends]
        return sum(ends) + sum(float(trial["seconds"]) for trial in trials)
