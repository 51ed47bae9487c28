# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a folder of images to a model and a report
#
# A folder of images, a folder of masks of the same names: that is all `fewshotseg` asks for. This
# notebook makes such a folder of *phantoms* (procedural images, no patients), and does with it what you
# would do with yours: **check**, **train**, **predict**, and look at the report. Every step is the
# command that you would type in a terminal.
#
# Two minutes on a CPU; everything is small, so that it is. With your images leave out `SMALL`, and with
# the extra `pretrained` also `segmenter=unet`.

# %%
# Installs the package where it is missing; the JAX that is there stays. In Colab, set SOURCE to
# "git+https://..." with the address of the repository; inside a clone, leave it.
import importlib.util
import pathlib
import subprocess
import sys

SOURCE = ".."
if importlib.util.find_spec("fewshotseg") is None:
    if SOURCE == ".." and not pathlib.Path("../setup.cfg").is_file():
        raise SystemExit("Set SOURCE in this cell to the repository's address, git+https://...")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", SOURCE])

# %%
import contextlib
import io
import json
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fewshotseg import cli, figures
from fewshotseg.data.sources.phantom import PhantomSource

TOY = "FEWSHOTSEG_TOY" in os.environ  # the tests run a smaller one
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="phantoms_"))


def fewshotseg(*flags):
    """The command `fewshotseg`, with its progress bars left out."""
    shown = [flag.replace(f"{FOLDER}/", "") for flag in flags]
    print("$ fewshotseg", " \\\n    ".join(shown), "\n")
    errors, output = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
            cli.main(["fewshotseg", *flags])
    except SystemExit:
        print(errors.getvalue())
        raise
    finally:
        print(output.getvalue().replace(f"{FOLDER}/", ""))


def show(path, width=9):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    figure, axis = plt.subplots(figsize=(width, width * pixels.shape[0] / pixels.shape[1]))
    axis.imshow(pixels)
    axis.axis("off")
    figure.tight_layout(pad=0)
    plt.show()


# %% [markdown]
# ## The folder
#
# `images/NAME.png` and `masks/NAME.png`; masks are 0 and 255 here, and may be 0 and 1, or class ids.
# Forty are labelled; five more have no mask and are what the model is for.

# %%
labelled, size = (14, 16) if TOY else (40, 48)
source = PhantomSource(num_cases=labelled + 5, image_size=size)
for number, case_id in enumerate(source.ids):
    case = source.load(case_id)
    kind = "images" if number < labelled else "new"
    figures.save_image(case.image, FOLDER / kind / f"{case_id}.png")
    if kind == "images":
        figures.save_image(255 * case.mask, FOLDER / "masks" / f"{case_id}.png")
for kind in ("images", "masks", "new"):
    names = sorted(path.name for path in (FOLDER / kind).iterdir())
    print(f"{kind:7}{len(names):3} files: {names[0]}, {names[1]}, ...")

# %% [markdown]
# ## Check
#
# Before anything is trained: what was found, and every fault with its remedy. The contact sheet has the
# outlines of the masks on the images: the place to see that images and masks belong together.

# %%
IMAGES = [
    f"--config.data.folder.images_dir={FOLDER / 'images'}",
    f"--config.data.folder.masks_dir={FOLDER / 'masks'}",
    f"--workdir={FOLDER / 'run'}",
]
SMALL = [  # small, so that this takes two minutes; leave it out for images of yours
    f"--config.data.image_size={size}",
    "--config.segmenter.unet.width=4",
    "--config.segmenter.unet.num_levels=2",
    "--config.generator.pix2pix.width=4",
    "--config.generator.pix2pix.num_levels=3",
    "--config.discriminator.patchgan.width=4",
    "--config.discriminator.patchgan.num_levels=1",
    f"--config.pretrain.num_steps={2 if TOY else 150}",
    f"--config.train.num_steps={4 if TOY else 200}",
    "--config.optim.warmup_steps=0",
    "--config.train.ema_decay=0.95",
    f"--config.eval_every={2 if TOY else 20}",
    "--config.compilation_cache=",
]
CONFIG = "--config=folder:segmenter=unet,method=real_only+mixture+joint"
fewshotseg("--mode=check", CONFIG, *IMAGES, *SMALL)
show(FOLDER / "run" / "check" / "contact_sheet.png")

# %% [markdown]
# ## Train
#
# Three methods, so that there is something to compare: `real_only` (augmented real images), `mixture`
# (and pairs made of two real ones), `joint` (and pairs that a generator draws). A fifth of the images
# is kept for the test, a fifth of the others validates. Killed and started again, the command goes on
# where it was.

# %%
fewshotseg(CONFIG, *IMAGES, *SMALL)

# %% [markdown]
# The log of every method is a line of JSON per interval.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3))
for method in ("real_only", "mixture", "joint"):
    text = (FOLDER / "run" / method / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for axis, key in zip(axes, ("segmenter/loss", "validation/dice"), strict=True):
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), marker=".", label=method)
        axis.set_ylabel(key.replace("/", ", "))
        axis.set_xlabel("step")
axes[1].legend(fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# What the segmenter of `joint` was trained on beside real pairs, as the generator draws it at the end
# (so small a generator draws blurs):

# %%
samples = sorted((FOLDER / "run" / "joint" / "samples").glob("*.png"))
show(samples[-1], width=5)

# %% [markdown]
# ## Predict
#
# Images without masks go in; masks at their size, overlays and a table of areas come out. Only the
# folder of the run is needed.

# %%
fewshotseg(
    "--mode=predict",
    f"--workdir={FOLDER / 'run'}",
    f"--input={FOLDER / 'new'}",
    f"--output={FOLDER / 'predicted'}",
    "--config.predict.method=real_only",
)
print((FOLDER / "predicted" / "areas.csv").read_text())

# %%
overlays = sorted((FOLDER / "predicted" / "overlays").glob("*.png"))
figure, axes = plt.subplots(1, len(overlays), figsize=(11, 2.6))
for axis, path in zip(axes, overlays, strict=True):
    with Image.open(path) as image:
        axis.imshow(np.asarray(image.convert("RGB")))
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The report
#
# `report.html` in the folder of the run stands alone: open it in a browser, or in Colab with
# `IPython.display.HTML(path.read_text())`. It says which model to use, compares the methods on the test
# images with intervals, and shows the worst cases: look at those first. Some of its pictures:

# %%
report = FOLDER / "run" / "report.html"
print(f"report.html: {report.stat().st_size / 2**20:.1f} MiB, of everything in the run:")
for path in sorted((FOLDER / "run").iterdir()):
    print("  ", path.name + ("/" if path.is_dir() else ""))
examples = sorted((FOLDER / "run" / "real_only" / "evaluation" / "test").rglob("*.png"))
figure, axes = plt.subplots(1, len(examples), figsize=(13, 2.8), squeeze=False)
for axis, path in zip(axes[0], examples, strict=True):
    with Image.open(path) as image:
        axis.imshow(np.asarray(image.convert("RGB")))
    axis.set_title(path.stem.partition("_phantom")[0].replace("_", " "), fontsize=9)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# To go on: `--mode=serve` opens a page that predicts images and the camera live, `--mode=export` writes
# a model that needs this package no more, `--mode=synthesize` writes synthetic pairs as files.
# `docs/data.md` has other layouts of folders, patients and volumes; notebook 04 what the methods are
# worth on real images.
