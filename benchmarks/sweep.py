"""Runs the lines of a file as commands, several at a time; those that ended well are not run again.

python benchmarks/sweep.py COMMANDS.txt [--workers=4] [--minutes=60] [--done=COMMANDS.done]

A line is a whole command, such as `python benchmarks/fewshot.py --datasets=busi --draws=0`; '#' begins a
comment. What a command prints goes to a log in DONE. With --minutes, what still runs then is ended; a run
of this project goes on where it was when its command is given again. On a cluster, an array job whose task
N runs `--only=N` does the same, see docs/devices.md.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("workers", os.cpu_count() or 1, "Commands at a time.", lower_bound=1)
flags.DEFINE_float("minutes", 0.0, "End everything after so many; 0: no limit.", lower_bound=0.0)
flags.DEFINE_string("done", "", "Folder of logs and of what is done; '' for COMMANDS.done.")
flags.DEFINE_integer("only", -1, "The number of one command, from 0; -1 for all.")


def read(path: pathlib.Path) -> list[str]:
    """The commands of a file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


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


def main(argv):
    path = pathlib.Path(argv[1])
    commands = read(path)
    if FLAGS.only >= 0:
        commands = commands[FLAGS.only : FLAGS.only + 1]
    folder = pathlib.Path(FLAGS.done or f"{path}.done")
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * FLAGS.minutes if FLAGS.minutes else float("inf")
    running, lock, count, failed = set(), threading.Lock(), 0, 0
    try:
        with concurrent.futures.ThreadPoolExecutor(FLAGS.workers) as pool:
            jobs = {pool.submit(run, c, folder, end, running): c for c in commands}
            for job in concurrent.futures.as_completed(jobs):
                with lock:
                    count, failed = count + 1, failed + job.result().startswith("FAILED")
                print(f"[{count}/{len(jobs)}] {job.result()}: {jobs[job]}", flush=True)
    except KeyboardInterrupt:
        for process in list(running):
            stop(process)
        raise
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
