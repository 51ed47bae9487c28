"""fewshotseg: few-shot medical image segmentation with synthetic pairs.

  python run.py                                        the embedded demo
  python run.py --mode=check --config=folder ...       looks at images and masks, as of the next command
  python run.py --config=folder --workdir=runs/mine \\
      --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks
  python run.py --minutes=30 --workdir=runs/quick      as many steps as fit
  python run.py --workdir=runs/mine                    goes on, with the configuration of that run
  python run.py --workdir=runs/mine --config.train.num_steps=3000      trains longer
  python run.py --mode=predict --workdir=runs/mine --input=new_images --output=masks
  python run.py --mode=serve --workdir=runs/mine                       a page for images and the camera
  python run.py --mode=export --workdir=runs/mine --output=model       to predict without this package
  python run.py --mode=synthesize --workdir=runs/mine --num=500 --output=pairs   synthetic pairs
  python run.py --mode=review --workdir=runs/mine                      a page to rate synthetic pairs
  python run.py --mode=hypergradient --workdir=runs/demo               the estimators compared
  python run.py --mode=report --workdir=runs/a,runs/b --output=both.html        runs compared

Where the package is installed, `fewshotseg` is the same command as `python run.py`.

Exit codes: 0 done; 2 something to put right, said in one sentence; 130 Ctrl-C and 143 SIGTERM, what is
trained is saved and the same command continues it; 1 a fault of the program, with its traceback.
"""

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
import traceback
import types
from typing import NoReturn

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

PACKAGE = pathlib.Path(__file__).parent
MODES = (
    "train", "check", "prepare", "evaluate", "predict", "serve", "export", "report",
    "hypergradient", "synthesize", "review",
)  # fmt: skip
# Without --config, that of the run in --workdir.
CONTINUE = ("train", "evaluate", "hypergradient", "synthesize", "review")
INPUT_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143  # 128 + the signal, as shells have it


def main(argv: list[str] | None = None) -> None:
    """Runs the command line `argv`, by default that of this process; mistakes end with SystemExit."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _help_old_compiler()
    # Tracing makes so many objects that looking at them again and again took an eighth of a short run.
    gc.set_threshold(50_000)
    from fewshotseg import commands, errors
    from fewshotseg.runs import interrupts

    logging.set_verbosity(logging.ERROR)
    together, kept = False, ""
    try:
        given = sys.argv if argv is None else argv
        with interrupts.remembered_interrupts(), _runs_here(given) as argv:
            values = parse(argv)
            together = bool(values.coordinator) or values.num_processes > 1
            if values.mode == "train":
                kept = " What is trained is saved; the same command continues it."
            commands.run(values.mode, values.config, values)
    except errors.InputError as error:
        _leave(error, INPUT_ERROR, together)
    except interrupts.Terminated:
        _leave(f"terminated.{kept}", TERMINATED, together)
    except KeyboardInterrupt:
        _leave(f"stopped.{kept}", INTERRUPTED, together)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags, with the configuration under `config`, overrides applied.

    Raises:
      InputError: a flag, a field or a configuration that does not exist or cannot be read.
      SystemExit: --help or --version was answered.
    """
    from fewshotseg import errors, files

    values = _define_flags()
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(f"{__doc__}\n{values.module_help(__name__)}\n")
        print(_about_config())
        sys.exit(0)
    if "--version" in argv[1:]:
        print(f"fewshotseg {importlib.metadata.version('fewshotseg')}")
        sys.exit(0)
    known = _peek(argv, mode=values["mode"].value, workdir=values["workdir"].value)
    config = _choose_config(known.config, known.mode, files.at_home(known.workdir))
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=_without(argv, "--config")
        )
        rest = values(_without(argv, "--config"))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.InputError(_essence(error)) from error
    if len(rest) > 1:
        raise errors.InputError(f"unexpected argument {rest[1]!r}: flags start with --.")
    for name in ("workdir", "input", "output"):
        values[name].value = values[name].value and files.at_home(values[name].value)
    if values.distributed:
        if values.coordinator not in (None, values.distributed):
            raise errors.InputError("give --distributed=auto or --coordinator=HOST:PORT, not both.")
        values["coordinator"].value = values.distributed
    return values


def load_config(name: str) -> ConfigDict:
    """A configuration.

    Args:
      name: a Python file with `get_config(arg)`, or the name of one in `configs/`, such as `demo`; what
        follows a colon is its argument, as in `demo:runlocal,seed=1`.

    Raises:
      InputError: there is no such file, or it cannot be loaded.
    """
    from fewshotseg import errors

    name, _, arg = name.partition(":")
    path = _find(name)
    _make_importable(config_folder())
    try:
        spec = importlib.util.spec_from_file_location("fewshotseg_config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(arg)
    except errors.InputError:
        raise
    except Exception as error:  # whatever a Python file can raise
        raise errors.InputError(_describe(error, path)) from error
    if not isinstance(config, ConfigDict):
        raise errors.InputError(
            f"get_config of {path} returned no configuration: return a ConfigDict."
        )
    return config.lock()


def config_folder() -> pathlib.Path:
    """`configs/` beside the package, as in a clone, or the copy that was installed inside of it."""
    beside = PACKAGE.parent / "configs"
    return beside if (beside / "default.py").is_file() else PACKAGE / "configs"


def _about_config():
    names = sorted({path.stem for path in config_folder().glob("[!_]*.py")} - {"default"})
    return (
        f"  --config=NAME[:CHOICE,...]: a Python file, or one of {', '.join(names)}.\n"
        "    Choices: method=A+B, segmenter=, generator=, estimator=, seed=, and\n"
        "    runlocal, which sees in a minute whether all works.\n"
        f"  --config.FIELD=VALUE: one of the fields in {config_folder() / 'default.py'}\n"
        "  --version"
    )


def _help_old_compiler():
    """JAX 0.7 compiles convolutions for wide vectors on CPUs 20 times slower than for narrow ones."""
    if importlib.metadata.version("jax").startswith("0.7."):
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_prefer_vector_width=128")


def _define_flags():
    values = flags.FlagValues()
    kind = {"flag_values": values}
    flags.DEFINE_string(
        "workdir",
        "runs/demo",
        "Folder of the run, here or gs://BUCKET/RUN; several, by ',': report compares them, predict, "
        "serve and export average them.",
        **kind,
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.", **kind)
    flags.DEFINE_string("data_dir", None, "prepare: folder with the official download.", **kind)
    flags.DEFINE_string("input", None, "predict: an image, a volume, or a folder of them.", **kind)
    flags.DEFINE_string(
        "output",
        None,
        "predict: folder for the masks; export: for the model; synthesize: for the pairs; report: the "
        "HTML page; check: folder for what it finds; review: a CSV file, and no page.",
        **kind,
    )
    flags.DEFINE_integer("num", 0, "synthesize: how many pairs.", **kind)
    flags.DEFINE_boolean("web", False, "export: also a page that predicts in the browser.", **kind)
    flags.DEFINE_string("host", "127.0.0.1", "serve, review: the address to listen on.", **kind)
    flags.DEFINE_integer(
        "port", 0, "serve, review: the port; 0 for any that is free.", 0, 65535, **kind
    )
    flags.DEFINE_boolean(
        "allow_other_machines",
        False,
        "serve, review: a --host that other machines can reach.",
        **kind,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "train in several processes: HOST:PORT of the first, or 'auto' under Slurm, Kubernetes, Open "
        "MPI or on a Cloud TPU.",
        **kind,
    )
    flags.DEFINE_enum("distributed", None, ("auto",), "The same as --coordinator=auto.", **kind)
    flags.DEFINE_float("minutes", 0.0, "train in at most so long; 0: as configured.", 0.0, **kind)
    flags.DEFINE_integer("num_processes", 1, "train in several processes: how many.", **kind)
    flags.DEFINE_integer("process_id", 0, "train in several processes: which one this is.", **kind)
    return values


def _peek(argv, **defaults):
    """What decides which configuration is loaded, before its fields can be flags."""
    from fewshotseg import errors

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("config", "mode", "workdir"):
        parser.add_argument(f"--{name}", default=defaults.get(name))
    try:
        return parser.parse_known_args(argv[1:])[0]
    except argparse.ArgumentError as error:
        raise errors.InputError(f"{error.argument_name} {error.message}.") from error


def _choose_config(name, mode, workdir):
    from fewshotseg.runs import folder, remote

    if name is None and mode in CONTINUE and workdir and folder.is_begun(pathlib.Path(workdir)):
        config = folder.restore_config(pathlib.Path(workdir), load_config("default"))
        print(f"Configuration: that of {remote.shown(workdir)}", flush=True)
        return config
    return load_config("demo" if name is None else name)


def _without(argv, flag):
    kept, skip = [], False
    for argument in argv:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            kept.append(argument)
        skip = argument == flag
    return kept


@contextlib.contextmanager
def _runs_here(argv):
    """`argv` with local copies of the runs that lie elsewhere (--workdir=gs://bucket/run)."""
    from fewshotseg.runs import remote

    workdir = _peek(argv, workdir="").workdir
    if not remote.is_remote(workdir):
        yield argv
        return
    log = functools.partial(print, flush=True)
    with remote.copies(workdir.split(","), log=log) as here:
        yield [*_without(argv, "--workdir"), f"--workdir={','.join(here)}"]


def _find(name):
    from fewshotseg import errors

    path, known = pathlib.Path(name), config_folder() / f"{pathlib.PurePath(name).stem}.py"
    if path.is_file() and path.suffix == ".py":
        return path
    if known.is_file() and str(path.with_suffix("")) in (known.stem, f"configs/{known.stem}"):
        return known
    names = ", ".join(sorted(p.stem for p in config_folder().glob("*.py") if p.stem != "__init__"))
    raise errors.InputError(
        f"--config={name} is no configuration: give a Python file, or one of {names}."
    )


def _make_importable(folder):
    """`from configs import default` means this folder, wherever the package is installed."""
    if "configs" not in sys.modules:
        sys.modules["configs"] = types.ModuleType("configs")
        sys.modules["configs"].__path__ = [str(folder)]


def _describe(error, path):
    """One line about what the Python file of a configuration raised."""
    if isinstance(error, SyntaxError):
        return (
            f"{error.filename}, line {error.lineno}: {error.msg}. That is no valid Python: mend it."
        )
    if isinstance(error, ValueError):  # a choice that does not exist
        return str(error).splitlines()[0]
    if "has no attribute 'get_config'" in str(error):
        return f"{path} has no function get_config: start from {config_folder() / 'demo.py'}."
    inside = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
    ]
    line = f", line {inside[-1]}" if inside else ""
    field = _suggestion(error)
    return f"{path}{line}: {field or f'{type(error).__name__}: {error}'.splitlines()[0]}"


def _suggestion(error):
    found = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error))
    return found and f'the configuration has no field "{found[2]}": did you mean "{found[1]}"?'


def _essence(error):
    """One line of what config_flags says in many."""
    if suggestion := _suggestion(error):
        return suggestion
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    if isinstance(error, AttributeError | KeyError):
        name = last.strip("\"'")
        return f"the configuration has no field {name!r}."
    if found := re.match(r"flag (--[\w.]+)=(.*?): (.*)", last):
        return f"{found[1]} is {found[2]!r}: {found[3]}."
    return re.sub(r"^\w+Error: ", "", last)


def _leave(message, code, together) -> NoReturn:
    program = pathlib.Path(sys.argv[0]).name
    program = "python -m fewshotseg" if program == "__main__.py" else program
    print(
        f"\n{program}: {message}" if together else f"{program}: {message}",
        file=sys.stderr,
        flush=True,
    )
    if together:  # a regular exit would wait for the other processes
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
