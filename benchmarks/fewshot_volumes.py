"""The ways of training on hippocampi (volumes, two classes) and retinal vessels (tiles, clDice).

python benchmarks/fewshot_volumes.py --data_dir=FOLDER [--datasets=drive] [--draws=0,1,2] [--methods=...]
python benchmarks/fewshot_table.py runs/volumes --rows=volumes_cases.csv
python benchmarks/fewshot_table.py volumes_cases.csv --against=real_plain [--class_name=anterior]

FOLDER holds msd_hippocampus/Task04_Hippocampus and drive/DRIVE as their official downloads are, and
splits/DATASET/ with lists of ids. A run folder for every data set and draw, resumable; a draw takes other
labelled cases of the pool. To choose settings, the list train is the pool and the list val tests (of
DRIVE, which has none, every third case of train); with --test_list=test, which is opened once, train and
val are the pool. Needs the extras `volumes` and `vessels`.
"""

import argparse
import itertools
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# Fields that differ from configs/public.py; cases to train and to validate on with the list val, with test.
DATASETS = {
    "msd_hippocampus": (
        {"train.num_steps": 600, "pretrain.num_steps": 300, "eval_every": 100},
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


def lists(dataset: str, data_dir: str, test_list: str) -> dict[str, list[str]]:
    """'pool' and 'test' of a data set; they share no case."""
    folder = pathlib.Path(data_dir, "splits", dataset)
    known = {path.stem: path.read_text().split() for path in folder.glob("*.txt")}
    train, val = known["train"], known.get("val", [])
    if test_list == "test":
        return {"pool": train + val, "test": known["test"]}
    if val:
        return {"pool": train, "test": val}
    return {"pool": [i for n, i in enumerate(train) if n % 3], "test": train[::3]}


def configure(
    dataset: str, seed: int, methods, prepared, split_file, test_list: str, num_steps: int = 0
):
    """The configuration of one data set and draw; with `num_steps`, of trainings of that length."""
    from configs import public

    fields, *numbers = DATASETS[dataset]
    config = public.get_config(dataset)
    config.update_from_flattened_dict(fields | {"evaluate.num_pairs": 0})
    num_train, num_validation = numbers[test_list == "test"]
    config.train.num_steps = num_steps or config.train.num_steps
    config.seed, config.methods = seed, tuple(methods)
    config.data.num_train, config.data.num_validation = num_train, num_validation
    config.data.tfds.data_dir, config.data.split_file = str(prepared), str(split_file)
    return config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with a folder per data set")
    parser.add_argument("--output", default="runs/volumes", help="folder for the runs")
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--draws", default="0,1,2", help="seeds, of the labelled cases too")
    parser.add_argument("--num_steps", type=int, default=0, help="of the segmenter; 0: our choice")
    parser.add_argument("--test_list", default="val", choices=("val", "test"))
    args = parser.parse_args()
    from fewshotseg import commands, errors, files
    from fewshotseg.data.sources import tfds
    from fewshotseg.runs import folder
    from fewshotseg.training import build, config_check, train

    output = pathlib.Path(args.output)
    wanted = itertools.product(map(int, args.draws.split(",")), args.datasets.split(","))
    try:
        for seed, dataset in wanted:
            tfds.prepare(dataset, pathlib.Path(args.data_dir, dataset), output / "prepared")
            split_file = output / dataset / f"{args.test_list}_lists.json"
            files.write_json(split_file, lists(dataset, args.data_dir, args.test_list))
            places = output / "prepared", split_file
            methods, more = args.methods.split(","), (args.test_list, args.num_steps)
            config = configure(dataset, seed, methods, *places, *more)
            workdir = output / dataset / f"{args.test_list}_draw_{seed}"
            commands.set_compilation_cache(config.compilation_cache)
            config_check.check_config(config)
            folder.write(config, workdir)
            train.train_and_evaluate(build.build(config), workdir)
    except errors.InputError as error:
        sys.exit(f"fewshot_volumes.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
