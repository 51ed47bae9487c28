"""Every method on real images with few labels: one row of a CSV file per run, resumable.

python benchmarks/fewshot.py --data_dir=FOLDER [--datasets=isic2017,busi] [--seeds=0,1,2]

FOLDER holds a folder per data set in the layout of its official download, and splits/DATASET/train.txt
and test.txt with the ids to draw the labelled images from and to test on. The 40 labelled images of a
seed are drawn from the train list, 32 to train and 8 to validate; nothing is tuned on the test list.
"""

import csv
import json
import os
import pathlib
import statistics
import sys

from absl import app, flags, logging
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# Where images and masks are in the official layouts; the foreground class.
DATASETS = {
    "isic2017": (
        ("ISIC-2017_Training_Data", "ISIC-2017_Validation_Data"),
        ("ISIC-2017_Training_Part1_GroundTruth", "ISIC-2017_Validation_Part1_GroundTruth"),
        "lesion",
    ),
    "kvasir_seg": (("Kvasir-SEG/images",), ("Kvasir-SEG/masks",), "polyp"),
    "fuseg": (
        ("Foot Ulcer Segmentation Challenge",),
        ("Foot Ulcer Segmentation Challenge",),
        "ulcer",
    ),
    "busi": (("Dataset_BUSI_with_GT",), ("Dataset_BUSI_with_GT",), "tumour"),
}
METRICS = ("dice", "jaccard", "hd95", "sensitivity", "precision")

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "fewshot.py"))
flags.DEFINE_string("data_dir", None, "Folder with a folder per data set.", required=True)
flags.DEFINE_string("output", "runs/fewshot", "Folder for the runs and results.csv.")
flags.DEFINE_list("datasets", list(DATASETS), "Which data sets.")
flags.DEFINE_list("methods", ["real_only", "separate", "joint", "end2end"], "Which methods.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Draws of the labelled images.")
flags.DEFINE_string("test_list", "test", "Name of the list to test on.")


def configure(config, dataset: str, seed: int, split_file: pathlib.Path):
    """The configuration of one data set and seed."""
    images, masks, class_name = DATASETS[dataset]
    root = pathlib.Path(FLAGS.data_dir, dataset)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.name, config.seed, config.methods = dataset, seed, tuple(FLAGS.methods)
        config.data.source, config.data.split_file = "folder", str(split_file)
        config.data.channels = 1 if dataset == "busi" else 3
        config.data.folder.name = dataset
        if dataset == "fuseg":  # wounds cover about 1 % of the image: many vanish at 64 pixels
            config.data.image_size = 96
        config.data.folder.class_names = (class_name,)
        config.data.folder.images_dir = ",".join(str(root / folder) for folder in images)
        config.data.folder.masks_dir = ",".join(str(root / folder) for folder in masks)
    return config


def write_lists(dataset: str, path: pathlib.Path) -> None:
    """The pool of labelled images and the test images, as a split file."""
    folder = pathlib.Path(FLAGS.data_dir, "splits", dataset)
    lists = {
        part: (folder / f"{name}.txt").read_text().split("\n")
        for part, name in (("train", "train"), ("test", FLAGS.test_list))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {part: [i.strip() for i in ids if i.strip()] for part, ids in lists.items()}
    path.write_text(json.dumps(lists))


def rows_of(config, workdir: pathlib.Path):
    """One row per method of a finished run."""
    environment = json.loads((workdir / "environment.json").read_text())
    for method in config.methods:
        folder = workdir / method
        summary = json.loads((folder / "evaluation" / "test" / "summary.json").read_text())
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        row = {"dataset": config.name, "method": method, "seed": config.seed}
        for metric in METRICS:
            row[metric] = summary["mean"][metric]["mean"]
        row["dice_low"], row["dice_high"] = summary["mean"]["dice"]["ci95"]
        row["cases"], row["undefined"] = summary["num_cases"], summary["mean"]["dice"]["n_nan"]
        row["validation_dice"] = last.get("validation/best_dice")
        row["steps"], row["seconds"] = config.train.num_steps, round(last["seconds"], 1)
        row["image_size"], row["width"] = config.data.image_size, config.segmenter.width
        row["device"] = environment["device"]
        row["revision"] = environment["git_revision"]
        yield row


def append(row: dict, path: pathlib.Path) -> None:
    """Appends a row unless its run is there already."""
    key = ("dataset", "method", "seed")
    if path.exists():
        with path.open() as file:
            if any(all(old[k] == str(row[k]) for k in key) for old in csv.DictReader(file)):
                return
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def table(path: pathlib.Path) -> str:
    """Dice as a Markdown table: mean and standard deviation over seeds, and the paired difference."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    dice, seconds = {}, {}
    for row in rows:
        key = row["dataset"], row["method"]
        dice.setdefault(key, {})[row["seed"]] = float(row["dice"])
        seconds.setdefault(key, []).append(float(row["seconds"]))
    lines = ["| data set | method | Dice | minus real_only | seeds | steps | seconds |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    steps = {(row["dataset"], row["method"]): row["steps"] for row in rows}
    for (dataset, method), values in dice.items():
        base = dice.get((dataset, "real_only"), {})
        differences = [values[s] - base[s] for s in values if s in base]
        lines.append(
            f"| {dataset} | {method} | {_spread(list(values.values()))} | "
            f"{'' if method == 'real_only' else _spread(differences, '+')} | {len(values)} | "
            f"{steps[dataset, method]} | {statistics.mean(seconds[dataset, method]):.0f} |"
        )
    return "\n".join(lines)


def _spread(values, sign=""):
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{deviation}"


def main(argv):
    del argv
    from fewshotseg import commands, errors
    from fewshotseg.training import train

    logging.set_verbosity(logging.WARNING)
    commands.set_compilation_cache(FLAGS.config.compilation_cache)
    output = pathlib.Path(FLAGS.output)
    try:
        for seed in map(int, FLAGS.seeds):
            for dataset in FLAGS.datasets:
                split_file = output / dataset / "lists.json"
                write_lists(dataset, split_file)
                config = configure(FLAGS.config, dataset, seed, split_file)
                workdir = output / dataset / f"seed_{seed}"
                train.train_and_evaluate(config, workdir)
                for row in rows_of(config, workdir):
                    append(row, output / "results.csv")
        print(table(output / "results.csv"))
    except errors.InputError as error:
        sys.exit(f"fewshot.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
