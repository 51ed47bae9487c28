"""Every method on real images with few labels: a run folder per data set and draw, resumable.

python benchmarks/fewshot.py --data_dir=FOLDER [--datasets=isic2017,busi] [--draws=0,1,2] [--num_labels=40]
python benchmarks/fewshot_table.py runs/fewshot

FOLDER holds a folder per data set in the layout of its official download, perhaps one more of the same
layout called DATASET_curve, and splits/DATASET/ with lists of ids. The lists train, extra and curve, as far
as they are there, are the pool that the labelled images of a draw come from, four fifths to train and one
to validate; what repeats or resembles an image of val or test is left out, whichever of the two is tested
on. Nothing is tuned on the list test: to choose, test on --test_lists=val. With --config.data.validate=none
the same labelled images all train, in folders of their own (..._all), and the rows of such a run say METHOD
on all labels.
"""

import itertools
import os
import pathlib
import shutil
import sys
import tempfile

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
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "fewshot.py"))
flags.DEFINE_string("data_dir", None, "Folder with a folder per data set.", required=True)
flags.DEFINE_string("output", "runs/fewshot", "Folder for the runs.")
flags.DEFINE_list("datasets", list(DATASETS), "Which data sets.")
METHODS = ["unet_plain", "unet_only", "real_plain", "real_only", "copy_paste", "cutmix"]
METHODS += ["colour_transfer", "mixture", "mixture_searched", "separate", "joint", "end2end"]
flags.DEFINE_list("methods", METHODS, "Which methods.")
flags.DEFINE_list("draws", ["0", "1", "2", "3", "4"], "Seeds, of the labelled images too.")
flags.DEFINE_list("num_labels", ["40"], "Labelled images, a fifth of them to validate.")
flags.DEFINE_list("test_lists", ["test"], "Names of the lists to test on.")


def configure(config, dataset: str, num_labels: int, seed: int, folder: pathlib.Path):
    """The configuration of one data set, number of labels and draw, after `write_lists`."""
    images, masks, class_name = DATASETS[dataset]
    roots = [pathlib.Path(FLAGS.data_dir, dataset), folder / "more"]
    folders = [
        [str(root / name) for root in roots for name in names if (root / name).is_dir()]
        for names in (images, masks)
    ]
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.name, config.seed, config.methods = dataset, seed, tuple(FLAGS.methods)
        config.data.source, config.data.split_file = "folder", str(folder / "lists.json")
        config.data.channels = 1 if dataset == "busi" else 3
        config.data.num_validation = max(2, num_labels // 5)
        config.data.num_train = num_labels - config.data.num_validation
        config.data.folder.name = dataset
        config.data.folder.class_names = (class_name,)
        config.data.folder.images_dir, config.data.folder.masks_dir = map(",".join, folders)
    return config


def write_lists(dataset: str, folder: pathlib.Path) -> None:
    """The pool of labelled images and the test images as a split file, and copies of the further images.

    Of the list curve only what is in no other list: of BUSI it repeats some.
    """
    from fewshotseg import files

    lists = pathlib.Path(FLAGS.data_dir, "splits", dataset)
    ids = {path.stem: read_list(path) for path in lists.glob("*.txt")}
    known = {i for name in ("train", "val", "extra", "test") for i in ids.get(name, ())}
    further = [i for i in ids.get("curve", ()) if i not in known]
    pool = [*ids["train"], *ids.get("extra", ()), *further]
    test = [i for name in FLAGS.test_lists for i in ids[name]]
    apart = [i for name in ("val", "test") for i in ids[name] if name not in FLAGS.test_lists]
    files.write_json(folder / "lists.json", {"pool": pool, "test": test, "exclude": apart})
    source = pathlib.Path(FLAGS.data_dir, f"{dataset}_curve")
    if source.is_dir() and not (folder / "more").exists():
        repeated = known & set(ids["curve"])

        def left_out(_, names):
            return [n for n in names if n.partition(".")[0].partition("_mask")[0] in repeated]

        copy = pathlib.Path(tempfile.mkdtemp(prefix="copying_", dir=folder))
        shutil.copytree(source, copy, ignore=left_out, dirs_exist_ok=True)
        try:
            copy.rename(folder / "more")
        except OSError:  # another process was faster
            shutil.rmtree(copy)


def read_list(path: pathlib.Path) -> list[str]:
    """The ids of a list, one per line."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def main(argv):
    del argv
    from fewshotseg import commands, errors
    from fewshotseg.runs import folder
    from fewshotseg.training import build, config_check, train

    logging.set_verbosity(logging.WARNING)
    commands.set_compilation_cache(FLAGS.config.compilation_cache)
    output = pathlib.Path(FLAGS.output)
    try:
        wanted = itertools.product(
            map(int, FLAGS.draws), FLAGS.datasets, map(int, FLAGS.num_labels)
        )
        for seed, dataset, num_labels in wanted:
            write_lists(dataset, output / dataset)
            config = configure(FLAGS.config, dataset, num_labels, seed, output / dataset)
            workdir = output / dataset / f"labels_{num_labels}_draw_{seed}"
            if config.data.validate == "none":  # the same images, and all of them train
                workdir = workdir.with_name(f"{workdir.name}_all")
            config_check.check_config(config)
            folder.write(config, workdir)
            train.train_and_evaluate(build.build(config), workdir)
    except errors.InputError as error:
        sys.exit(f"fewshot.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
