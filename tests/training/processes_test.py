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

from fewshotseg import cli, commands, errors
from fewshotseg.runs import checkpoint
from fewshotseg.runs import log as summaries

ROOT = pathlib.Path(__file__).parents[2]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(environment, workdir, method, num_processes, *flags):
    """The processes of one run, and the files with what they print."""
    port, started = _free_port(), []
    for i in range(num_processes):
        command = [
            sys.executable,
            str(ROOT / "run.py"),
            f"--config={ROOT}/tests/toy_config.py:method={method}",
            f"--workdir={workdir}",
            "--config.pretrain.num_steps=5",
            *flags,
        ]
        if num_processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}"]
            command += [f"--process_id={i}"]
        output = workdir.parent / f"{workdir.name}_{i}_{len(list(workdir.parent.iterdir()))}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        started.append((process, output))
    return started


def _finish(started):
    for process, output in started:
        assert process.wait(timeout=600) == 0, output.read_text()


def _numbers(workdir, method):
    lines = summaries.read_log(workdir / method / "log.jsonl")
    return {line["step"]: line for line in lines}


def test_two_processes_train_as_one(environment, tmp_path):
    one, workdir = tmp_path / "one", tmp_path / "run"
    _finish(_start(environment, one, "joint", 1))
    _finish(_start(environment, workdir, "joint", 2))
    found, expected = _numbers(workdir, "joint"), _numbers(one, "joint")
    assert found.keys() == expected.keys() and max(found) == 20
    for step, line in expected.items():
        for key in ("segmenter/loss", "generator/loss", "discriminator/loss"):
            assert found[step][key] == pytest.approx(line[key], rel=2e-3), (step, key)
    written = json.loads((workdir / "environment.json").read_text())
    assert "2 processes" in written["device"]
    assert (workdir / "report.html").exists()
    assert checkpoint.has_checkpoint(workdir / "joint" / "checkpoints")


@pytest.mark.parametrize("victim", [0, 1])
def test_losing_a_process_ends_the_run_and_one_process_can_finish_it(victim, environment, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--config.train.num_steps=300", "--config.eval_every=100")
    started = _start(environment, workdir, "real_only", 2, *flags)
    log = workdir / "real_only" / "log.jsonl"
    deadline = time.monotonic() + 600
    while not (log.exists() and len(summaries.read_log(log)) > 5):
        for process, output in started:
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
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
    last = max(_numbers(workdir, "real_only"))
    _finish(_start(environment, workdir, "real_only", 1, *flags))
    assert last < max(_numbers(workdir, "real_only")) == 300
    steps = [line["step"] for line in summaries.read_log(log)]
    assert steps == sorted(set(steps))


def _refused(*flags):
    """The sentence with which a command line is refused, in this process."""
    values = cli.parse(["run.py", *flags])
    with pytest.raises(errors.InputError) as caught:
        commands.run(values.mode, values.config, values)
    return str(caught.value)


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
    said = _refused(f"--workdir={tmp_path}", "--config.compilation_cache=", *flags)
    assert "give HOST:PORT of process 0" in said


def test_no_scheduler_to_ask(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), f"--workdir={tmp_path}", "--coordinator=auto"]
    alone = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "KUBERNETES"))
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=alone)
    assert done.returncode == 2
    assert "found no job of Slurm" in done.stderr and "Traceback" not in done.stderr


def test_other_modes_need_no_company():
    flags = ("--mode=predict", "--coordinator=a:1", "--config.compilation_cache=")
    assert "runs in one process" in _refused(*flags)
