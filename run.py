"""fewshotseg: few-shot medical image segmentation with synthetic pairs.

python run.py                                                   the embedded demo
python run.py --config=configs/folder.py --workdir=runs/mine \\
    --config.data.folder.images_dir=images --config.data.folder.masks_dir=masks
python run.py --mode=predict --workdir=runs/mine --input=new_images --output=masks
python run.py --mode=hypergradient --workdir=runs/demo           the estimators compared
"""

import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).parent
MODES = ("train", "check", "prepare", "evaluate", "predict", "report", "hypergradient")
FLAGS = flags.FLAGS


def define_flags():
    """Raises whatever a mistyped `--config.FIELD` raises: config_flags looks at the command line."""
    config_flags.DEFINE_config_file(
        "config",
        str(ROOT / "configs" / "demo.py"),
        "Configuration; --config.FIELD=VALUE overrides.",
    )
    flags.DEFINE_string(
        "workdir", "runs/demo", "Folder of the run; for report, several joined by ','."
    )
    flags.DEFINE_enum("mode", "train", MODES, "What to do.")
    flags.DEFINE_string("data_dir", None, "prepare: folder with the official download.")
    flags.DEFINE_string("input", None, "predict: an image or a folder of images.")
    flags.DEFINE_string("output", None, "predict: folder for the masks; report: the HTML page.")
    flags.DEFINE_string("coordinator", None, "train in several processes: HOST:PORT of the first.")
    flags.DEFINE_integer("num_processes", 1, "train in several processes: how many.")
    flags.DEFINE_integer("process_id", 0, "train in several processes: which one this is.")


def parse_flags(argv):
    """What `flags.FLAGS(argv)` returns; a mistake ends with one line and exit code 2."""
    try:
        define_flags()
        rest = FLAGS(argv)
        FLAGS.config.is_locked  # noqa: B018  (a file that could not be loaded raises here)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        fail(_essence(error))
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; flags start with --.")
    return rest


def _essence(error):
    """One line of what config_flags says in many, with tracebacks inside."""
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(error))
    if suggestion:
        return 'the configuration has no field "{1}": did you mean "{0}"?'.format(
            *suggestion.groups()
        )
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    if isinstance(error, AttributeError | KeyError):
        return f"the configuration has no field {last}."
    return re.sub(r"^\w+Error: ", "", last)


def fail(message):
    print(f"run.py: {message}", file=sys.stderr)
    sys.exit(2)


def main(argv):
    del argv
    from fewshotseg import commands, errors

    logging.set_verbosity(logging.ERROR)
    try:
        commands.run(FLAGS.mode, FLAGS.config, FLAGS)
    except errors.InputError as error:
        if FLAGS.num_processes > 1:  # a regular exit would wait for the other processes
            print(f"\nrun.py: {error}", file=sys.stderr, flush=True)
            os._exit(2)
        fail(error)
    except KeyboardInterrupt:
        print(
            "run.py: stopped. What is trained is saved; the same command continues it.",
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=parse_flags)
