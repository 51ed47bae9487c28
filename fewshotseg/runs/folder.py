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

from fewshotseg import errors, files

# Fields that may differ between commands on one workdir: they do not change what is trained.
FREE_FIELDS = ("methods", "evaluate", "predict", "test_sets", "compilation_cache", "diagnose")
PACKAGES = ("fewshotseg", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write(config, workdir: pathlib.Path) -> None:
    """Writes config.json and environment.json.

    Raises:
      InputError: the folder holds a run of another configuration.
    """
    if (workdir / "config.json").exists():
        check_same(config, workdir)
    files.write_json(workdir / "config.json", json.loads(config.to_json()))
    files.write_json(workdir / "environment.json", environment())


def check_same(config, workdir: pathlib.Path) -> None:
    """Compares `config` with that of the run in `workdir`.

    Raises:
      InputError: they differ in a field that is not one of `FREE_FIELDS`.
    """
    ours, theirs = json.loads(config.to_json()), read_config(workdir)
    changed = sorted(_differences(_fixed(theirs), _fixed(ours)))
    if changed:
        raise errors.InputError(
            f"{workdir} holds a run with other settings ({', '.join(changed[:5])}): give the "
            "--config and overrides of that run, or use another --workdir."
        )


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The configuration of a run, as nested dictionaries.

    Raises:
      InputError: there is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        return json.loads(path.read_text())
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
        return json.loads((workdir / "classes.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise errors.InputError(f"{workdir} has no classes.json: train first.") from error


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


def _fixed(config):
    return {k: v for k, v in config.items() if k not in FREE_FIELDS}


def _differences(a, b, prefix=""):
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            yield from _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            yield f"{prefix}{key}"
