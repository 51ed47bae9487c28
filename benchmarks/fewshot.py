"""Every method on real images with few labels: one row of a CSV file per run, resumable.

python benchmarks/fewshot.py --data_dir=FOLDER [--datasets=isic2017,busi] [--seeds=0,1,2]

FOLDER holds a folder per data set in the layout of its official download, perhaps one more of the same
layout called DATASET_curve, and splits/DATASET/ with lists of ids. The lists train, extra and curve, as far
as they are there, are the pool that the 40 labelled images of a seed are drawn from, 32 to train and 8 to
validate; where it has just 40 (BUSI, whose further images repeat some of the test list), seeds divide the
same images, and the report says so. Nothing is tuned on the list test: to choose, test on --test_list=val.
"""

import csv
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
METRICS = ("dice", "jaccard", "hd95", "nsd", "sensitivity", "precision")

POOL = {"busi": ("train",)}  # lists of ids; its list curve has images of the other lists in it

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "fewshot.py"))
flags.DEFINE_string("data_dir", None, "Folder with a folder per data set.", required=True)
flags.DEFINE_string("output", "runs/fewshot", "Folder for the runs and fewshot.csv.")
flags.DEFINE_list("datasets", list(DATASETS), "Which data sets.")
METHODS = ["real_plain", "real_only", "copy_paste", "cutmix", "colour_transfer", "mixture"]
METHODS += ["mixture_searched", "mixture_chosen", "separate", "joint", "end2end"]
flags.DEFINE_list("methods", METHODS, "Which methods.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
flags.DEFINE_string("test_list", "test", "Name of the list to test on.")


def configure(config, dataset: str, seed: int, split_file: pathlib.Path):
    """The configuration of one data set and seed."""
    images, masks, class_name = DATASETS[dataset]
    more = ("_curve",) if "curve" in POOL.get(dataset, ("curve",)) else ()
    roots = [pathlib.Path(FLAGS.data_dir, dataset + suffix) for suffix in ("", *more)]
    folders = [
        [str(root / name) for root in roots for name in names if (root / name).is_dir()]
        for names in (images, masks)
    ]
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.name, config.seed, config.methods = dataset, seed, tuple(FLAGS.methods)
        config.data.source, config.data.split_file = "folder", str(split_file)
        config.data.channels = 1 if dataset == "busi" else 3
        config.data.folder.name = dataset
        if (
            dataset == "fuseg" and config.data.image_size == 64
        ):  # wounds cover about 1 % of the image: many vanish at 64 pixels
            config.data.image_size = 96
        config.data.folder.class_names = (class_name,)
        config.data.folder.images_dir, config.data.folder.masks_dir = map(",".join, folders)
    return config


def write_lists(dataset: str, path: pathlib.Path) -> None:
    """The pool of labelled images and the test images, as a split file."""
    from fewshotseg import files

    folder = pathlib.Path(FLAGS.data_dir, "splits", dataset)
    names = POOL.get(dataset, ("train", "extra", "curve"))
    names = [name for name in names if (folder / f"{name}.txt").exists()]
    pool = [i for name in names for i in read_list(folder / f"{name}.txt")]
    test = read_list(folder / f"{FLAGS.test_list}.txt")
    files.write_json(path, {"pool": pool, "test": test})


def read_list(path: pathlib.Path) -> list[str]:
    """The ids of a list, one per line."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def rows_of(config, workdir: pathlib.Path):
    """One row per method of a finished run; seconds with the generator's pre-training."""
    from fewshotseg.results.report import inputs

    run = inputs.read_run(workdir)
    for method in config.methods:
        summary = run.summaries[method, "test"]
        row = {"dataset": config.name, "method": method, "seed": config.seed}
        for metric in METRICS:
            row[metric] = summary["mean"][metric]["mean"]
        row["pooled_dice"], row["ece"] = summary["mean"]["pooled_dice"], summary["mean"]["ece"]
        row["dice_low"], row["dice_high"] = summary["mean"]["dice"]["ci95"]
        row["cases"], row["undefined"] = summary["num_cases"], summary["mean"]["dice"]["n_nan"]
        row["bootstrap_over"] = summary["bootstrap_over"]
        row["validation_dice"] = run.logs[method][-1].get("validation/model_dice")
        row["steps"], row["seconds"] = config.train.num_steps, round(run.seconds(method), 1)
        row["segmenter"], row["image_size"] = config.segmenter.name, config.data.image_size
        row["device"] = run.environment["device"]
        row["revision"] = run.environment["git_revision"]
        yield row


def append(row: dict, path: pathlib.Path) -> None:
    """Appends a row unless its run is there already.

    Raises:
      InputError: the table there has other columns.
    """
    from fewshotseg import errors

    key = ("dataset", "segmenter", "method", "seed", "steps")
    old = read_table(path) if path.exists() else []
    if old and list(old[0]) != list(row):
        raise errors.InputError(f"{path}: has other columns: give another --output.")
    if any(all(other[k] == str(row[k]) for k in key) for other in old):
        return
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if not old:
            writer.writeheader()
        writer.writerow(row)


def read_table(path: pathlib.Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows) -> str:
    """Dice and HD95 as a Markdown table: mean and sd over seeds, and the difference to `real_only`
    of the same segmenter, steps and seeds. A row for every data set, segmenter, steps and method."""
    found = {}
    for row in rows:
        key = row["dataset"], row["segmenter"], row["steps"], row["method"]
        found.setdefault(key, {})[row["seed"]] = row
    lines = [
        "| data set | segmenter | steps | method | Dice | minus real_only "
        "| HD95 | minus | seeds | seconds |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (*where, method), seeds in found.items():
        base = {} if method == "real_only" else found.get((*where, "real_only"), {})
        cells = []
        for metric, digits in (("dice", 3), ("hd95", 1)):
            values = {seed: float(row[metric]) for seed, row in seeds.items()}
            differences = [v - float(base[s][metric]) for s, v in values.items() if s in base]
            cells += [_spread(list(values.values()), digits), _spread(differences, digits, "+")]
        seconds = statistics.mean(float(row["seconds"]) for row in seeds.values())
        cells += [str(len(seeds)), f"{seconds:.0f}"]
        lines.append("| " + " | ".join((*map(str, where), method, *cells)) + " |")
    return "\n".join(lines)


def _spread(values, digits, sign=""):
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{deviation}"


def main(argv):
    del argv
    from fewshotseg import commands, errors
    from fewshotseg.results.report import page
    from fewshotseg.runs import folder
    from fewshotseg.training import build, config_check, train

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
                config_check.check_config(config)
                folder.write(config, workdir)
                train.train_and_evaluate(build.build(config), workdir)
                for row in rows_of(config, workdir):
                    append(row, output / "fewshot.csv")
        runs = [output / d / f"seed_{s}" for d in FLAGS.datasets for s in FLAGS.seeds]
        page.build_report(runs, output / "report.html")  # and cases.csv, a row per case
        print(table(read_table(output / "fewshot.csv")))
    except errors.InputError as error:
        sys.exit(f"fewshot.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
