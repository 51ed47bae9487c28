"""Runs small enough for tests: four methods on 16-pixel phantoms, as a command and as a configuration.

Both ways have the same programs, and XLA takes most of the time: `conftest.py` lets all tests of a
session share one cache of them.
"""

import functools
import json
import operator
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from configs import demo
from fewshotseg import checkpoint, experiment, summaries

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("real_only", "separate", "joint", "end2end")
# On top of `runlocal`. XLA's time grows with the depth of the networks, not with their width.
SIZES = {
    "data.image_size": 16,
    "data.phantom.num_cases": 40,
    "segmenter.num_levels": 1,
    "generator.num_levels": 2,
    "discriminator.num_levels": 1,
}
# Faster to compile; the programs are slower, but there are few steps.
FAST_COMPILE = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


def shrink(config, **fields):
    """Sets `SIZES` and other fields, '__' for '.'."""
    for path, value in {**SIZES, **{k.replace("__", "."): v for k, v in fields.items()}}.items():
        *blocks, field = path.split(".")
        functools.reduce(operator.getitem, blocks, config)[field] = value
    config.compilation_cache = ""
    return config


def config(*methods, **fields):
    """Configuration of the toy run."""
    return shrink(demo.get_config(f"runlocal,method={'+'.join(methods or METHODS)}"), **fields)


class Flags:
    """What `commands.run` reads of the flags."""

    def __init__(self, workdir, **flags):
        self.workdir = str(workdir)
        self.data_dir = self.input = self.output = None
        self.__dict__.update({k: str(v) for k, v in flags.items()})


def command(workdir, cache, *flags):
    """The command line of the toy run."""
    return [
        sys.executable,
        str(ROOT / "run.py"),
        f"--config={ROOT}/configs/demo.py:runlocal,method={'+'.join(METHODS)}",
        f"--workdir={workdir}",
        f"--config.compilation_cache={cache}",
        *(f"--config.{path}={value}" for path, value in SIZES.items()),
        *flags,
    ]


def environment(**variables):
    """For subprocesses: compiles as this process does."""
    fast = {name.upper(): str(value) for name, value in FAST_COMPILE.items()}
    return {**os.environ, **fast, **variables}


def run(*args):
    """Runs a command to its end; it never shows a traceback."""
    done = subprocess.run(
        command(*args), capture_output=True, text=True, env=environment(), timeout=900
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def start(*args):
    """Starts a command."""
    return subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def wait_for_step(process, path, step):
    """Until the log has reached `step`."""
    while process.poll() is None:
        lines = summaries.read_log(path)
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"ended before {path} came to step {step}: {process.communicate()[1]}")


def best_of(workdir, method):
    return checkpoint.load_best(workdir / method / "checkpoints")[0]


def state_of(config, data, workdir, method):
    """The last state of a stage."""
    stage = stage_of(config, data, workdir, method)
    checkpoints = checkpoint.Checkpoints(workdir / method / "checkpoints")
    state = checkpoints.restore(stage.initial_state())[0]
    checkpoints.close()
    return state


def stage_of(config, data, workdir, method, gan=None):
    from fewshotseg import train

    if method == "generator":
        return train.Pretraining(config, data, workdir / "generator")
    if gan is None and method != "real_only":
        gan = untrained_gan(config, data)
    return train.Training(config, data, workdir / method, method, gan)


def untrained_gan(config, data):
    networks = experiment.create_networks(config, data.num_classes)
    bundle, _ = experiment.create_method(config, networks, data.num_classes, "separate", "pretrain")
    return experiment.init_gan(config, networks, bundle)


def cases_of(workdir, method, test_set="test"):
    return json.loads((workdir / method / "evaluation" / test_set / "cases.json").read_text())


def assert_same_bits(a, b):
    """Also of the types; NaNs are equal."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def compare(path, x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape, jax.tree_util.keystr(path)
        assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, a, b)
