"""What a run folder says about itself: its configuration and its environment."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from fewshotseg import errors, files, labels, types
from fewshotseg.methods import METHODS
from fewshotseg.runs import checkpoint
from fewshotseg.runs.settings import FREE_FIELDS

GROWS = "train.num_steps"  # may be larger than before: training goes on
OPTIMIZERS = ("optim", "gan_optim", "outer_optim")
PACKAGES = ("fewshotseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(config, workdir: pathlib.Path) -> None:
    """Writes config.json and environment.json: from the first work that is kept on, they bind the folder.

    `train.num_steps` may be larger than that of the run: training then goes on, which is printed and
    noted in continued.json, and what has been evaluated counts as not evaluated.

    Raises:
      InputError: the folder holds a run of another configuration.
    """
    if is_begun(workdir):
        check_same(config, workdir, may_grow=True)
        _reopen(config, workdir)
    files.write_json(workdir / "config.json", json.loads(config.to_json()))
    files.write_json(workdir / "environment.json", environment())


def is_trained(workdir: pathlib.Path) -> bool:
    """Whether anything trained in this folder has been kept."""
    return any(checkpoint.has_checkpoint(path) for path in workdir.glob("*/checkpoints"))


def is_begun(workdir: pathlib.Path) -> bool:
    """Whether anything has been kept that a training goes on from: a checkpoint, or a trial of a search."""
    return is_trained(workdir) or any(workdir.glob("*/search.json"))


def check_same(config, workdir: pathlib.Path, may_grow: bool = False) -> None:
    """Compares `config` with that of the run in `workdir`.

    Raises:
      InputError: they differ in a field that is not one of `FREE_FIELDS`; with `may_grow`,
        `train.num_steps` may be larger.
    """
    ours, theirs = json.loads(config.to_json()), read_config(workdir)
    changed = set(_differences(_fixed(theirs), _fixed(ours)))
    hint = ""
    if changed == {GROWS}:
        if may_grow and theirs["train"]["num_steps"] < ours["train"]["num_steps"]:
            return
        hint = f"; to train longer, give --config.{GROWS} above {theirs['train']['num_steps']}"
    if changed:
        raise errors.InputError(
            f"{workdir} holds a run with other settings ({', '.join(sorted(changed)[:5])}): give the "
            f"--config and overrides of that run, or use another --workdir{hint}."
        )


def _reopen(config, workdir):
    """Prepares a finished run for more steps, if `config` asks for them."""
    before, now = read_config(workdir)["train"]["num_steps"], config.train.num_steps
    if now == before:
        return
    trained = [m for m in METHODS if checkpoint.has_checkpoint(workdir / m / "checkpoints")]
    if left_out := [method for method in trained if method not in config.methods]:
        raise errors.InputError(
            f"{workdir} holds {', '.join(left_out)}, trained for {before} steps: methods of one run "
            f"have equal steps, so name all of them in --config.methods, or use another --workdir."
        )
    curved = [name for name in OPTIMIZERS if config[name].schedule != "constant"]
    print(
        f"{GROWS} grows from {before} to {now}: training goes on. "
        + (
            f"The {config[curved[0]].schedule} schedule of {' and '.join(curved)} now ends at {now}, "
            f"so the result is not that of {now} steps in one go."
            if curved
            else f"The schedules are constant{_cut_short(config, before)}."
        )
        + (" Searches are not repeated." if any(workdir.glob("*/search.json")) else ""),
        flush=True,
    )
    path = workdir / "continued.json"
    history = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    files.write_json(path, [*history, {"from": before, "to": now}])
    for summary in workdir.glob("*/evaluation/*/summary.json"):  # written last: says "done"
        summary.unlink()


def _cut_short(config, before):
    if config.outer.num_inner_steps == 1 or before % config.outer.every == 0:
        return f": the result is that of {config.train.num_steps} steps in one go"
    return f", but an outer step was cut short at {before}, so the result is not that of one go"


def restore_config(workdir: pathlib.Path, template):
    """The configuration of a run, to go on with.

    Args:
      workdir: of the run.
      template: a configuration that has every field of this version.

    Raises:
      InputError: another version made the run, with other fields.
    """
    stored = type(template)(_with_tuples(read_config(workdir)))
    differing = sorted(_fields(template) ^ _fields(stored))
    if differing:
        raise errors.InputError(
            f"{workdir} was made by another version, which knows other fields "
            f"({', '.join(differing[:5])}): go on with that version, or train in another --workdir."
        )
    return stored.lock()


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration of a run, as nested dictionaries.

    Raises:
      InputError: there is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise errors.InputError(
            f"{workdir} is not the folder of a run: {path.name} is missing or damaged. Give the "
            "--workdir that training was given."
        ) from error


def read_class_names(workdir: pathlib.Path) -> list[str]:
    """The foreground classes of a run.

    Raises:
      InputError: training has not come that far.
    """
    try:
        return json.loads((workdir / "classes.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise errors.InputError(f"{workdir} has no classes.json: train first.") from error


def write_classes(workdir: pathlib.Path, source: types.CaseSource) -> None:
    """Writes the names of the foreground classes, and what values they have in masks."""
    found = labels.of_source(source)
    files.write_json(workdir / "classes.json", source.class_names)
    files.write_json(workdir / "labels.json", {"ids": found.ids, "ignored": found.ignored})


def read_labels(workdir: pathlib.Path) -> labels.Labels:
    """The values that the classes of a run have in masks; a run of an earlier version had no choice."""
    try:
        stored = json.loads((workdir / "labels.json").read_text(encoding="utf-8"))
    except OSError:
        return labels.PLAIN
    return labels.as_labels(stored["ids"], stored["ignored"])


def environment() -> dict[str, Any]:
    """Versions, git revision and device."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_revision": _git_revision(),
        "device": device(),
        "command": " ".join(pathlib.Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
    }


def device() -> str:
    """The devices training runs on, for people to read."""
    kind = jax.local_devices()[0].device_kind
    cores = f" with {allowed_cores()} cores" if jax.default_backend() == "cpu" else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {kind}{cores}{processes}"


def allowed_cores() -> int:
    """Cores that this process may use; a batch system or taskset may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git_revision():
    root = pathlib.Path(__file__).parents[2]
    if not (root / "run.py").exists():  # installed, perhaps inside of somebody else's repository
        return "none"
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _with_tuples(value):
    """JSON knows lists only; all sequences of a configuration are tuples."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _fields(config, prefix=""):
    """Names of all fields but those of further test sets, which every experiment names itself."""
    found = set()
    for key, value in config.items():
        if hasattr(value, "items") and f"{prefix}{key}" != "test_sets":
            found |= _fields(value, f"{prefix}{key}.")
        else:
            found.add(f"{prefix}{key}")
    return found


def _fixed(config):
    return {k: v for k, v in config.items() if k not in FREE_FIELDS}


def _differences(a, b, prefix=""):
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}"
