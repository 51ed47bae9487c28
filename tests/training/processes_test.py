"""Two processes on one machine, started as on a cluster, train as one process does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from fewshotseg.runs import checkpoint
from fewshotseg.runs import log as summaries

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(workdir, cache, num_processes, *flags):
    """The processes of one run, and the files with what they print."""
    port, started = _free_port(), []
    for i in range(num_processes):
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            f"--config={ROOT}/configs/demo.py:runlocal,method=joint",
            f"--workdir={workdir}",
            f"--config.compilation_cache={cache}",
            "--config.test_sets.shifted.phantom.num_cases=3",
            "--config.pretrain.num_steps=5",
            *flags,
        ]
        if num_processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}"]
            command += [f"--process_id={i}"]
        output = workdir.parent / f"{workdir.name}_{i}_{len(list(workdir.parent.iterdir()))}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            )
        started.append((process, output))
    return started


def _finish(started):
    for process, output in started:
        assert process.wait(timeout=600) == 0, output.read_text()


def _numbers(workdir):
    lines = summaries.read_log(workdir / "joint" / "log.jsonl")
    return {line["step"]: line for line in lines}


@pytest.fixture(scope="module")
def single(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("single") / "run"
    _finish(_start(workdir, cache, 1))
    return workdir


def test_two_processes_train_as_one(single, cache, tmp_path):
    workdir = tmp_path / "run"
    _finish(_start(workdir, cache, 2))
    found, expected = _numbers(workdir), _numbers(single)
    assert found.keys() == expected.keys() and max(found) == 20
    for step, line in expected.items():
        for key in ("segmenter/loss", "generator/loss", "discriminator/loss"):
            assert found[step][key] == pytest.approx(line[key], rel=2e-3), (step, key)
    environment = json.loads((workdir / "environment.json").read_text())
    assert "2 processes" in environment["device"]
    assert (workdir / "report.html").exists()
    assert checkpoint.has_checkpoint(workdir / "joint" / "checkpoints")


@pytest.mark.parametrize("victim", [0, 1])
def test_losing_a_process_ends_the_run_and_one_process_can_finish_it(
    victim, single, cache, tmp_path
):
    workdir = tmp_path / "run"
    flags = ("--config.train.num_steps=100",)
    started = _start(workdir, cache, 2, *flags)
    log = workdir / "joint" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and len(summaries.read_log(log)) > 5):
        assert time.monotonic() < deadline, started[0][1].read_text()
        time.sleep(0.05)
    started[victim][0].send_signal(signal.SIGKILL)
    started[victim][0].wait()
    other, output = started[1 - victim]
    assert other.wait(timeout=60) == 2
    assert "lost the others" in output.read_text()
    assert "start all processes again with the same commands" in output.read_text()
    assert "Traceback" not in output.read_text()
    if victim == 0:
        return
    last = max(_numbers(workdir))
    _finish(_start(workdir, cache, 1, *flags))
    assert last < max(_numbers(workdir)) == 100
    steps = [line["step"] for line in summaries.read_log(log)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    "flags",
    [
        ["--num_processes=2"],
        ["--num_processes=0"],
        ["--coordinator=garbage"],
        ["--coordinator=a:99999"],
        ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
    ],
)
def test_flags_that_do_not_fit_together(flags, tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "give HOST:PORT of process 0" in done.stderr and "Traceback" not in done.stderr


def test_no_scheduler_to_ask(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={tmp_path}", "--coordinator=auto"]
    alone = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "KUBERNETES"))
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=alone)
    assert done.returncode == 2
    assert "found no job of Slurm" in done.stderr and "Traceback" not in done.stderr


def test_other_modes_need_no_company(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), "--mode=predict", "--coordinator=a:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "runs in one process" in done.stderr
