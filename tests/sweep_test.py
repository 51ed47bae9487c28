"""benchmarks/sweep.py with trivial commands: done once, failures reported, ended when the time is over."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path):
    """`sweep(*flags)` of a file of commands in an empty folder: exit code and lines printed."""

    def run(*flags):
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), "commands.txt", *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def lines(path):
    return sorted(path.read_text().splitlines()) if path.exists() else []


def test_what_is_done_is_not_done_again_and_what_failed_is(sweep, tmp_path):
    (tmp_path / "commands.txt").write_text(
        "# two good ones\necho a >> made\n\necho b >> made\necho c >> made; echo why; exit 3\n"
    )
    code, said = sweep("--workers=2")
    assert code == 1 and lines(tmp_path / "made") == ["a", "b", "c"]
    assert len(said) == 3 and sum("done in" in line for line in said) == 2
    (failed,) = (line for line in said if "FAILED (3)" in line)
    log = tmp_path / failed.partition("see ")[2].partition(": ")[0]
    assert log.read_text() == "$ echo c >> made; echo why; exit 3\nwhy\n"
    code, said = sweep("--workers=2")
    assert code == 1 and lines(tmp_path / "made") == ["a", "b", "c", "c"]
    assert sum("was done" in line for line in said) == 2


def test_a_task_of_an_array_job_runs_its_line_alone(sweep, tmp_path):
    (tmp_path / "commands.txt").write_text("echo a >> made\necho b >> made\n")
    assert sweep("--only=1")[0] == 0 and lines(tmp_path / "made") == ["b"]
    assert sweep()[0] == 0 and lines(tmp_path / "made") == ["a", "b"]


def test_when_the_time_is_over_everything_is_ended(sweep, tmp_path):
    (tmp_path / "commands.txt").write_text(
        "sleep 60 & echo $! > child; wait; touch never\necho b\n"
    )
    began = time.monotonic()
    code, said = sweep("--workers=1", "--minutes=0.05")
    assert code == 0 and time.monotonic() - began < 30
    assert [line.partition("] ")[2].partition(":")[0] for line in said] == ["ended", "no time"]
    child = int((tmp_path / "child").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # what started it reaps it, sooner or later
            os.kill(child, 0)
            if "Z" in pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]:
                raise ProcessLookupError
            time.sleep(0.05)
    assert not (tmp_path / "never").exists()


def test_it_writes_a_command_per_choice(sweep, tmp_path):
    template = (
        "run --data={busi,isic2017} --method={m:real,end} --draw={0..2} --to=runs/{m} --dict={}"
    )
    template = template.replace("--draw", "\\\n--draw")  # continued
    assert sweep(f"--write={template}") == (0, [])
    written = (tmp_path / "commands.txt").read_text().splitlines()
    assert len(written) == len(set(written)) == 12
    assert written[0] == "run --data=busi --method=real --draw=0 --to=runs/real --dict={}"
    assert written[-1] == "run --data=isic2017 --method=end --draw=2 --to=runs/end --dict={}"


def test_jobs_of_submitit(sweep, tmp_path):
    """As `--cluster=slurm`, in processes of this machine."""
    pytest.importorskip("submitit")
    (tmp_path / "commands.txt").write_text("echo a >> made\nexit 3\n")
    code, said = sweep("--cluster=local", "--slurm=timeout_min=2")
    assert code == 1 and lines(tmp_path / "made") == ["a"]
    assert said[0].startswith("done in") and said[1].startswith("FAILED (3)")
    assert sweep("--cluster=local")[1][0].startswith("was done")


def test_ctrl_c_ends_what_runs_and_starts_nothing_more(tmp_path):
    command = "echo $$ >> began; sleep 30; touch never"
    (tmp_path / "commands.txt").write_text("".join(f"{command} # {i}\n" for i in range(5)))
    script = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), "commands.txt", "--workers=2"]
    process = subprocess.Popen(script, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1000):
            if len(lines(tmp_path / "began")) == 2:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode and "KeyboardInterrupt" in said
    began = lines(tmp_path / "began")
    assert len(began) == 2 and not (tmp_path / "never").exists()
    for leader in began:
        with pytest.raises(ProcessLookupError):
            os.kill(int(leader), 0)
    assert not list(tmp_path.glob("commands.txt.done/*.ok"))
