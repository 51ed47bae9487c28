"""Generator families and the GAN's fields against each other: a run folder per data set, variant and draw.

python benchmarks/generators.py --data_dir=FOLDER [--variants=gan,diffusion] [--draws=0,1,2]
python benchmarks/generators_table.py runs/generators

Data, lists, draws and flags are those of fewshot.py. Every method sees the same number of images per step
and takes the same steps; a segmenter of real images alone is trained once for a data set and draw. What
is trained is not trained again: killed and called again, it goes on.
"""

import os
import pathlib
import shutil
import sys

import fewshot  # benchmarks/fewshot.py: its flags are ours too
from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

FLAGS = flags.FLAGS
flags.DEFINE_list("variants", [], "Some of VARIANTS; all by default.")
FLAGS.set_default("datasets", ["isic2017", "busi"])
FLAGS.set_default("draws", ["0", "1", "2"])
FLAGS.set_default("methods", ["real_only", "separate", "end2end"])
FLAGS.set_default("output", "runs/generators")

ALONE = "real_only"  # needs no generator
SHOWN = ("colour", "translation", "cutout")
HINGE = {"family.gan.adversarial": "hinge", "family.gan.feature_weight": 10.0}
VARIANTS = {
    "gan": {},
    "gan_hinge": HINGE,
    "gan_augmented": {"family.gan.augmented": SHOWN},
    "gan_scales": {"discriminator.patchgan.num_scales": 2},
    "gan_all": HINGE | {"family.gan.augmented": SHOWN, "discriminator.patchgan.num_scales": 2},
    "diffusion": {"family.name": "diffusion"},
    "vae": {"family.name": "vae"},
    "wgan": {"family.name": "wgan"},
}


def set_fields(config, variant: str):
    """The configuration of a variant."""
    config = config.copy_and_resolve_references()
    for field, value in VARIANTS[variant].items():
        *blocks, last = field.split(".")
        block = config
        for name in blocks:
            block = block[name]
        block[last] = value
    return config


def train_variant(config, workdir: pathlib.Path, alone: pathlib.Path | None) -> None:
    """Trains or goes on; `alone` is the folder of a segmenter that the variants share."""
    from fewshotseg.runs import folder
    from fewshotseg.training import build, config_check, train

    config_check.check_config(config)
    folder.write(config, workdir)
    if alone and not (workdir / ALONE).exists():
        shutil.copytree(alone, workdir / "copying", dirs_exist_ok=True)
        (workdir / "copying").rename(workdir / ALONE)  # whole, or not at all
    train.train_and_evaluate(build.build(config), workdir)


def main(argv):
    del argv
    from fewshotseg import commands, errors

    logging.set_verbosity(logging.WARNING)
    commands.set_compilation_cache(FLAGS.config.compilation_cache)
    output = pathlib.Path(FLAGS.output)
    variants = FLAGS.variants or list(VARIANTS)
    if unknown := set(variants) - set(VARIANTS):
        sys.exit(f"generators.py: --variants has {', '.join(unknown)}: use {', '.join(VARIANTS)}.")
    try:
        for seed in map(int, FLAGS.draws):
            for dataset in FLAGS.datasets:
                fewshot.write_lists(dataset, output / dataset)
                (num_labels,) = map(int, FLAGS.num_labels)
                config = fewshot.configure(
                    FLAGS.config, dataset, num_labels, seed, output / dataset
                )
                alone = None
                for variant in variants:
                    workdir = output / dataset / variant / f"draw_{seed}"
                    train_variant(set_fields(config, variant), workdir, alone)
                    alone = workdir / ALONE if ALONE in config.methods else None
    except errors.InputError as error:
        sys.exit(f"generators.py: {error}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
