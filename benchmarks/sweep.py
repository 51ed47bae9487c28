"""Runs the lines of a file as commands, several at a time; those that ended well are not run again.

python benchmarks/sweep.py COMMANDS.txt \\
    --write='python benchmarks/fewshot.py --data_dir=FOLDER --datasets={busi,fuseg} --draws={0..4}'
python benchmarks/sweep.py COMMANDS.txt [--workers=4] [--minutes=60] [--done=COMMANDS.done]

The first writes the file, a line for every choice from every brace, as a shell would; '{m:a,b}' has a name,
and '{m}' is the same choice again. A line is a whole command; '#' begins a comment. What a
command prints goes to a log in DONE. With --minutes, what still runs then is ended; a run of this project
goes on where it was when its command is given again. On a cluster, an array job whose task N runs
`--only=N` does the same, and so does --cluster=slurm (extra `slurm`): docs/devices.md.
"""

import concurrent.futures
import hashlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("workers", os.cpu_count() or 1, "Commands at a time.", lower_bound=1)
flags.DEFINE_float("minutes", 0.0, "End everything after so many; 0: no limit.", lower_bound=0.0)
flags.DEFINE_string("done", "", "Folder of logs and of what is done; '' for COMMANDS.done.")
flags.DEFINE_string("write", "", "Write the file, from a command with {choices,in,braces}.")
flags.DEFINE_enum("cluster", "", ["", "slurm", "local"], "Run the commands as jobs of submitit.")
flags.DEFINE_list("slurm", [], "Of these jobs: NAME=VALUE,..., such as slurm_partition=gpu.")
flags.DEFINE_integer("only", -1, "The number of one command, from 0; -1 for all.")


def read(path: pathlib.Path) -> list[str]:
    """The commands of a file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def expand(template: str) -> list[str]:
    """A command for every choice from every brace: '{a,b}', '{0..4}', or named, '{m:a,b}' and again '{m}'.

    Other braces stay as they are.
    """
    template = template.replace("\\\n", "")  # a line may be continued, as in a shell
    found = list(re.finditer(r"\{(?:(\w+):)?([^{}]*(?:,|\.\.)[^{}]*)\}", template))
    commands = []
    for chosen in itertools.product(*(_choices(match[2]) for match in found)):
        command = template
        for match, choice in zip(found, chosen, strict=True):
            command = command.replace(match[0], choice, 1)
            if match[1]:
                command = command.replace(f"{{{match[1]}}}", choice)
        commands.append(command)
    return commands


def _choices(text):
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        return [str(i) for i in range(int(numbers[1]), int(numbers[2]) + 1)]
    return text.split(",")


def run(command: str, folder: pathlib.Path, end: float, running: set) -> str:
    """Runs one command, unless it is done or `end` (of `time.monotonic`) is past; a word on how it went."""
    name = hashlib.sha256(command.encode()).hexdigest()[:16]
    if (folder / f"{name}.ok").exists():
        return "was done"
    if time.monotonic() >= end:
        return "no time"
    began = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        log.write(f"$ {command}\n")
        log.flush()
        process = subprocess.Popen(
            command, shell=True, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        running.add(process)
        try:
            code = process.wait(max(0.0, end - time.monotonic()) if end < float("inf") else None)
        except subprocess.TimeoutExpired:
            stop(process)
            return "ended: no time left"
        finally:
            running.discard(process)
    if code:
        return f"FAILED ({code}), see {folder / name}.log"
    (folder / f"{name}.ok").touch()
    return f"done in {time.monotonic() - began:.0f} s"


def stop(process) -> None:
    """Ends a command and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def submit(commands, folder: pathlib.Path, options, cluster: str, minutes: float, workers: int):
    """Runs the commands as one array job of submitit, at most `workers` at a time; what `run` returned."""
    import submitit

    executor = submitit.AutoExecutor(folder / "jobs", cluster=cluster)
    limit = {"timeout_min": int(minutes) + 5} if minutes else {}
    array = {"slurm_array_parallelism": workers} if cluster == "slurm" else {}
    executor.update_parameters(**limit, **array, **_as_numbers(options))
    return executor.map_array(_Job(folder.absolute(), minutes), commands)


class _Job:
    """`run` on another machine, whose clock is another; sent there by value."""

    def __init__(self, folder, minutes):
        self.folder, self.minutes, self.run = folder, minutes, run

    def __call__(self, command):
        end = time.monotonic() + 60 * self.minutes if self.minutes else float("inf")
        return self.run(command, self.folder, end, set())


def _as_numbers(options):
    pairs = (option.partition("=")[::2] for option in options)
    return {name: int(value) if value.isdigit() else value for name, value in pairs}


def main(argv):
    if len(argv) != 2:
        sys.exit("sweep.py: give one file of commands.")
    path = pathlib.Path(argv[1])
    if FLAGS.write:
        path.write_text("".join(f"{command}\n" for command in expand(FLAGS.write)))
        return
    commands = read(path)
    if FLAGS.only >= 0:
        commands = commands[FLAGS.only : FLAGS.only + 1]
    folder = pathlib.Path(FLAGS.done or f"{path}.done")
    folder.mkdir(parents=True, exist_ok=True)
    if FLAGS.cluster:
        limits = FLAGS.cluster, FLAGS.minutes, FLAGS.workers
        words = [job.result() for job in submit(commands, folder, FLAGS.slurm, *limits)]
        print("\n".join(f"{w}: {c}" for w, c in zip(words, commands, strict=True)), flush=True)
        sys.exit(1 if any(word.startswith("FAILED") for word in words) else 0)
    end = time.monotonic() + 60 * FLAGS.minutes if FLAGS.minutes else float("inf")
    running, count, failed = set(), 0, 0
    jobs = {}
    with concurrent.futures.ThreadPoolExecutor(FLAGS.workers) as pool:
        try:
            for command in commands:
                jobs[pool.submit(run, command, folder, end, running)] = command
            for job in concurrent.futures.as_completed(jobs):
                count, failed = count + 1, failed + job.result().startswith("FAILED")
                print(f"[{count}/{len(jobs)}] {job.result()}: {jobs[job]}", flush=True)
        except KeyboardInterrupt:  # in here: on its way out, the pool waits for all that is left
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(job.done() for job in jobs):  # one may just be starting
                for process in list(running):
                    stop(process)
                time.sleep(0.01)
            raise
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
