"""The ways of training on hippocampi (volumes, two classes) and retinal vessels (tiles, clDice).

python benchmarks/volumes.py --data_dir=FOLDER [--datasets=msd_hippocampus] [--draws=0,1,2] [--methods=...]
python benchmarks/fewshot_table.py runs/volumes --rows=volumes_cases.csv
python benchmarks/fewshot_table.py volumes_cases.csv --against=real_plain [--class_name=anterior]

FOLDER holds msd_hippocampus/Task04_Hippocampus and drive/DRIVE as their official downloads are, and
splits/DATASET/ with lists of ids. A run folder for every data set and draw, resumable; a draw takes other
labelled cases of the pool. To choose settings, the list train is the pool and the list val tests (of
DRIVE, which has none, every third case of train); with --test_list=test, which is opened once, train and
val are the pool. Needs the extras `volumes` and `vessels`.
"""

import itertools
import os
import pathlib
import sys

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# Fields that differ from configs/public.py; cases to train and to validate on with the list val, with test.
DATASETS = {
    "msd_hippocampus": (
        {"train.num_steps": 200, "pretrain.num_steps": 150, "eval_every": 100},
        (12, 6),
        (20, 15),
    ),
    "drive": (
        {
            **{"data.image_size": 64, "segmenter.unet.num_levels": 3, "optim.learning_rate": 3e-3},
            **{"generator.pix2pix.num_levels": 4, "generator.pix2pix.width": 16},
            **{"generator.pix2pix.max_width": 64, "discriminator.patchgan.width": 16},
            **{"train.num_steps": 300, "pretrain.num_steps": 200, "eval_every": 100},
            **{"train.batch_size": 4, "pretrain.batch_size": 4},
        },
        (4, 2),
        (6, 3),
    ),
}
METHODS = ["real_plain", "real_only", "separate", "end2end"]
FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder with a folder per data set.", required=True)
flags.DEFINE_string("output", "runs/volumes", "Folder for the runs.")
flags.DEFINE_list("datasets", list(DATASETS), "Which data sets.")
flags.DEFINE_list("methods", METHODS, "Which methods.")
flags.DEFINE_list("draws", ["0", "1", "2"], "Seeds, of the labelled cases too.")
flags.DEFINE_enum("test_list", "val", ["val", "test"], "Which list to test on.")


def lists(dataset: str, data_dir: str, test_list: str) -> dict[str, list[str]]:
    """'pool' and 'test' of a data set; they share no case."""
    from fewshot import read_list  # beside this file

    folder = pathlib.Path(data_dir, "splits", dataset)
    known = {path.stem: read_list(path) for path in folder.glob("*.txt")}
    train, val = known["train"], known.get("val", [])
    if test_list == "test":
        return {"pool": train + val, "test": known["test"]}
    if val:
        return {"pool": train, "test": val}
    return {"pool": [i for n, i in enumerate(train) if n % 3], "test": train[::3]}


def configure(dataset: str, seed: int, methods, prepared, split_file, test_list: str):
    """The configuration of one data set and draw."""
    from configs import public

    fields, *numbers = DATASETS[dataset]
    config = public.get_config(dataset)
    config.update_from_flattened_dict(fields | {"evaluate.num_pairs": 0})
    num_train, num_validation = numbers[test_list == "test"]
    config.seed, config.methods = seed, tuple(methods)
    config.data.num_train, config.data.num_validation = num_train, num_validation
    config.data.tfds.data_dir, config.data.split_file = str(prepared), str(split_file)
    return config


def main(argv):
    del argv
    from fewshotseg import commands, errors, files
    from fewshotseg.data.sources import tfds
    from fewshotseg.runs import folder
    from fewshotseg.training import build, config_check, train

    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(FLAGS.output)
    try:
        for seed, dataset in itertools.product(map(int, FLAGS.draws), FLAGS.datasets):
            root = output / dataset
            tfds.prepare(dataset, pathlib.Path(FLAGS.data_dir, dataset), output / "prepared")
            split_file = root / f"{FLAGS.test_list}_lists.json"
            files.write_json(split_file, lists(dataset, FLAGS.data_dir, FLAGS.test_list))
            places = output / "prepared", split_file
            config = configure(dataset, seed, FLAGS.methods, *places, FLAGS.test_list)
            workdir = root / f"{FLAGS.test_list}_draw_{seed}"
            commands.set_compilation_cache(config.compilation_cache)
            config_check.check_config(config)
            folder.write(config, workdir)
            train.train_and_evaluate(build.build(config), workdir)
    except errors.InputError as error:
        sys.exit(f"volumes.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
