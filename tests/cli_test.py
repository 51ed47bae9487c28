"""The command line: where the configuration comes from, and one sentence for every mistake."""

import json
import os
import pathlib
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import demo
from fewshotseg import cli, commands
from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor
from fewshotseg.runs import checkpoint
from fewshotseg.runs import folder as run_folder


def parse(*arguments):
    return cli.parse(["run.py", *arguments])


@pytest.fixture
def trained(tmp_path):
    """The folder of a run with a checkpoint."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = demo.get_config("runlocal,seed=5")
    config.optim.learning_rate = 0.25
    run_folder.write(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir / "joint" / "checkpoints")
    checkpoints.save(20, {"w": np.ones(2)}, {"w": np.ones(2)}, {})
    checkpoints.close()
    return workdir


def test_without_arguments_it_is_the_demo(tmp_path):
    values = parse(f"--workdir={tmp_path}")
    assert values.config.to_json() == demo.get_config().to_json()
    assert values.mode == "train" and values.config.is_locked


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=demo:runlocal,seed=3"],
        ["--config", "configs/demo.py:runlocal,seed=3"],
        [f"--config={cli.config_folder()}/demo.py:seed=3,runlocal"],
    ],
)
def test_a_configuration_by_name_or_by_file(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no configs/
    values = parse(
        *arguments,
        "--config.train.num_steps=7",
        "--config.methods=joint",
        "--config.data.folder.class_names=('a','b')",
    )
    assert values.config.seed == 3 and values.config.data.image_size == 32
    assert values.config.train.num_steps == 7 and values.config.methods == ("joint",)
    assert values.config.data.folder.class_names == ("a", "b")


def test_a_configuration_of_ones_own_starts_from_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from configs import default\n\ndef get_config(arg=''):\n    config = default.get_config(arg)\n"
        "    config.name = 'mine'\n    return config\n"
    )
    values = parse("--config=mine.py:seed=4")
    assert values.config.name == "mine" and values.config.seed == 4


@pytest.mark.parametrize("mode", cli.CONTINUE)
def test_the_folder_of_a_run_suffices(mode, trained):
    values = parse(f"--mode={mode}", f"--workdir={trained}", "--config.evaluate.threshold=0.4")
    assert values.config.seed == 5 and values.config.optim.learning_rate == 0.25
    assert values.config.evaluate.threshold == 0.4
    assert run_folder.check_same(values.config, trained) is None
    again = json.loads(values.config.to_json())
    again["evaluate"]["threshold"] = 0.5
    assert again == run_folder.read_config(trained)


def test_a_search_that_was_stopped_goes_on_without_a_configuration(trained):
    shutil.rmtree(trained / "real_only", ignore_errors=True)
    for checkpoints in trained.glob("*/checkpoints"):
        shutil.rmtree(checkpoints)
    (trained / "mixture_searched").mkdir()
    (trained / "mixture_searched" / "search.json").write_text('{"trials": []}')
    assert parse(f"--workdir={trained}").config.seed == 5


def test_a_configuration_that_is_given_counts(trained):
    assert parse(f"--workdir={trained}", "--config=demo").config.seed == 0


def test_a_run_of_another_version_is_refused(trained):
    stored = json.loads((trained / "config.json").read_text())
    stored["train"]["nesterov"] = stored["train"].pop("ema_decay")
    (trained / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"other fields \(train.ema_decay, train.nesterov\)"):
        parse(f"--workdir={trained}")


FILES = {
    "syntax.py": ("def get_config(arg='')\n    pass\n", r"syntax.py, line 1: expected ':'"),
    "raises.py": ("def get_config(arg=''):\n    return {}['a']\n", r"raises.py, line 2: KeyError: 'a'"),
    "no_function.py": ("x = 1\n", r"no_function.py has no function get_config: start from .*demo.py"),
    "nothing.py": ("def get_config(arg=''):\n    pass\n", "returned no configuration"),
    "imports.py": ("import nnothing\n", r"imports.py, line 1: ModuleNotFoundError: .*nnothing"),
    "typo.py": (
        "from configs import default\n\ndef get_config(arg=''):\n    c = default.get_config()\n"
        "    c.trian.num_steps = 3\n",
        r'typo.py, line 5: .* no field "trian": did you mean "train"',
    ),
    "README.md": ("# Title\n", r"README.md is no configuration: give a Python file, or one of .*demo"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_that_cannot_be_loaded(name, tmp_path):
    text, words = FILES[name]
    (tmp_path / name).write_text(text)
    _refused(words, f"--config={tmp_path / name}", f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config=nope.py", "nope.py is no configuration"),
        ("--config=configs", "configs is no configuration"),
        ("--config", "--config expected one argument"),
        ("--config=demo:sead=1", "no choice 'sead'"),
        ("--config.train.num_step=3", 'no field "num_step": did you mean "num_steps"'),
        ("--config.quux=3", "no field 'quux'"),
        ("--config.seed=x", "--config.seed is 'x'"),
        ("--mode=trian", "--mode is 'trian'.*hypergradient"),
        ("--wrokdir=a", "workdir"),
        ("extra", "unexpected argument 'extra'"),
    ],
)
def test_a_mistyped_command_line(argument, words, tmp_path):
    _refused(words, f"--workdir={tmp_path}", argument)


def _refused(words, *arguments):
    with pytest.raises(InputError, match=words) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value) and "Error:" not in re.sub(
        "(Key|Module.*)Error", "", str(caught.value)
    )


def test_a_mistake_ends_with_one_line_and_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["somewhere/run.py", "--config.train.num_step=3"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == cli.INPUT_ERROR == 2
    error = capsys.readouterr().err
    assert error.startswith("run.py: ") and error.count("\n") == 1


def _ends(monkeypatch, capsys, mode, error):
    """What a command says whose mode raises something; its exit code."""

    def fail(config, flags):
        raise error

    monkeypatch.setitem(commands.COMMANDS, mode, fail)
    with pytest.raises(SystemExit) as caught:
        cli.main(["run.py", f"--mode={mode}", "--config=demo:runlocal"])
    return caught.value.code, capsys.readouterr().err


def test_too_little_memory_is_said_in_one_line_with_what_to_try(monkeypatch, capsys):
    full = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore"
    )
    code, said = _ends(monkeypatch, capsys, "train", full)
    assert code == cli.INPUT_ERROR and said.count("\n") == 1
    assert "allocating 99 bytes" in said and "train.batch_size (4)" in said
    with pytest.raises(jax.errors.JaxRuntimeError):  # anything else is a fault of the program
        _ends(monkeypatch, capsys, "train", jax.errors.JaxRuntimeError("INTERNAL: a bug"))


def test_only_a_training_that_was_stopped_is_continued(monkeypatch, capsys):
    for mode, kept in (("train", True), ("check", False)):
        code, said = _ends(monkeypatch, capsys, mode, KeyboardInterrupt())
        assert code == cli.INTERRUPTED and ("the same command continues it" in said) == kept


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_and_the_fields(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(flag)
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name in ("mode", "workdir", "input", "output", "data_dir", "coordinator", "num_processes"):
        assert f"--{name}:" in said
    assert str(cli.config_folder() / "default.py") in said and "Exit codes" in said


def test_a_copy_inside_the_package_serves_where_there_is_no_clone(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "fewshotseg"
    (package / "configs").mkdir(parents=True)
    monkeypatch.setattr(cli, "PACKAGE", pathlib.Path(package))
    assert cli.config_folder() == package / "configs"


@pytest.mark.parametrize(
    "version, before, after",
    [("0.7.2", None, "--xla_cpu_prefer_vector_width=128"), ("0.7.2", "--mine", "--mine"),
     ("0.10.2", None, None)],
)  # fmt: skip
def test_an_old_compiler_is_helped_unless_the_user_has_flags(version, before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # so that the variable is put back afterwards
    monkeypatch.delenv("XLA_FLAGS")
    if before:
        monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(cli.importlib.metadata, "version", lambda package: version)
    cli._help_old_compiler()
    assert os.environ.get("XLA_FLAGS") == after


def test_distributed_auto_is_coordinator_auto():
    assert parse("--distributed=auto").coordinator == "auto"
    assert parse("--distributed=auto", "--coordinator=auto").coordinator == "auto"
    assert parse().coordinator is None
    with pytest.raises(InputError, match="--distributed=auto or --coordinator=HOST:PORT, not both"):
        parse("--distributed=auto", "--coordinator=host:1234")
    with pytest.raises(InputError, match="--distributed"):
        parse("--distributed=yes")


def test_the_home_of_the_user_in_paths(monkeypatch, tmp_path, trained):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = parse(
        "--workdir=~/a,gs://bucket/~b,c", "--input=~/in", "--output=~/out", "--config=demo"
    )
    assert values.workdir == f"{tmp_path}/a,gs://bucket/~b,c"
    assert (values.input, values.output) == (f"{tmp_path}/in", f"{tmp_path}/out")
    assert parse("--workdir=~/run").config.seed == 5  # of the run there
    assert parse("--config=demo").input is None


def test_files_that_could_not_be_read_are_counted_and_not_their_rows(monkeypatch, tmp_path):
    for name, value in (("a", 0), ("b", 1)):
        Image.fromarray(np.full((9, 9), value, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"")

    def thirds(images):
        return np.full((*images.shape[:-1], 3), 1 / 3, np.float32)

    model = Predictor(thirds, 8, 1, ("one", "two"), 0.5, "test")
    monkeypatch.setattr(commands, "_load_predictor", lambda *_: model)
    values = parse("--mode=predict", f"--input={tmp_path}", f"--output={tmp_path}-out")
    with pytest.raises(InputError, match=r"^1 of 3 files could not be read \(c.png\)"):
        commands.predict(values.config, values)
