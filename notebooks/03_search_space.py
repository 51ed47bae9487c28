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
# # The search space of the generator
#
# The generator that draws images for masks is a U-Net whose cells are *searchable*: every cell is a
# mixture of three convolutions, with kernels of 4, 6 and 8 pixels, and the **mixing weights** are what
# the hypergradient moves. This notebook looks at one cell, at why the mixture is one convolution, at
# what is lost when the search ends and every cell keeps one candidate, and at what the hypergradient
# does to the weights.
#
# Two minutes on a CPU.

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
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from fewshotseg import cli, pictures
from fewshotseg.genseg import losses, outer_variables
from fewshotseg.models import factory, layers, search_space
from fewshotseg.training import build, config_check

TOY = "FEWSHOTSEG_TOY" in os.environ  # the tests run a smaller one

# %% [markdown]
# ## One cell
#
# A cell maps $x$ to $\sum_i w_i\,\mathrm{conv}_i(x)$, with $w = \mathrm{softmax}(\alpha)$. The
# candidates have stride 2 and paddings that centre them on the same pixels.

# %%
SIZES = search_space.KERNEL_SIZES
cell = search_space.Cell(features=8)
x = jax.random.normal(jax.random.key(0), (2, 32, 32, 4))
w = jax.nn.softmax(jnp.array([0.2, 1.0, -0.5]))
params = jax.tree.map(
    lambda p: getattr(p, "value", p),
    cell.init(jax.random.key(1), x, w)["params"],
    is_leaf=lambda p: hasattr(p, "value"),
)
for name, leaf in params.items():
    print(f"{name:10} {leaf.shape}")
print("weights   ", dict(zip(SIZES, w.round(3).tolist(), strict=True)))

# %% [markdown]
# ## The mixture is one convolution
#
# Convolution is linear in its kernel. Pad the smaller kernels with zeros to the size of the largest,
# add them with their weights: **one** kernel, one convolution, the same result. Below, the cell against
# the sum of three cells that have one candidate each (weights 1, 0, 0 and so on).

# %%
merged = cell.apply({"params": params}, x, w)
candidates = [cell.apply({"params": params}, x, one_hot) for one_hot in jnp.eye(len(SIZES))]
summed = sum(weight * y for weight, y in zip(w, candidates, strict=True))
difference = float(jnp.abs(merged - summed).max())
print(f"largest difference {difference:.1e}, of values up to {float(jnp.abs(summed).max()):.1f}")
assert difference < 1e-4

kernels = [params[f"kernel_{k}"] for k in SIZES]
one = search_space.merge_kernels(kernels, w)
padded = [search_space.merge_kernels(kernels, e) for e in jnp.eye(len(SIZES))]
figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
titles = [f"{weight:.2f} x kernel {k}" for weight, k in zip(w, SIZES, strict=True)] + ["merged"]
for axis, kernel, title in zip(axes, [*padded, one], titles, strict=True):
    limit = float(jnp.abs(padded[0][..., 0, 0]).max())
    axis.imshow(kernel[..., 0, 0], cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
figure.tight_layout()
plt.show()

# %% [markdown]
# The same for the transposed cells of the decoder, and for the derivative with respect to the weights:
# nothing is approximated. What it saves, in operations as XLA counts them, forwards and backwards:


# %%
def separate(params, x, w):
    """What one would write first: every candidate, then the sum."""
    each = [
        layers.conv(x, params[f"kernel_{k}"], stride=2, padding=k // 2 - 1) + params["bias"]
        for k in SIZES
    ]
    return sum(weight * y for weight, y in zip(w, each, strict=True))


def together(params, x, w):
    return cell.apply({"params": params}, x, w)


for name, function in (("three candidates", separate), ("merged", together)):
    loss = jax.jit(jax.grad(lambda p, w, f=function: (f(p, x, w) ** 2).sum(), argnums=(0, 1)))
    gradient = np.asarray(loss(params, w)[1])
    millions = loss.lower(params, w).compile().cost_analysis()["flops"] / 1e6
    print(f"{name:18}{millions:6.1f} million operations, dL/dw = {gradient.round(1).tolist()}")

# %% [markdown]
# ## When the search ends
#
# A mixture of three is used while searching. Afterwards every cell keeps its strongest candidate alone
# (`discretize`): the logits become such that their softmax is exactly one-hot. That is a jump. How
# large it is depends on how decided the weights were: here the images of one (untrained) generator,
# soft and discretised, with all logits scaled from undecided to decided.

# %%
spec = factory.Spec(num_classes=2, image_size=(32, 32), channels=3, searched=("encoder", "decoder"))
fields = {"num_levels": 3, "width": 8, "max_width": 32, "groups": 4, "dropout_rate": 0.0}
generator = factory.create_generator("pix2pix", fields, spec)
print("mixing weights:", dict(generator.mixing), "(cells, candidates)")
weights = generator.init(jax.random.key(2))
theta, use = outer_variables.create(
    {"architecture": generator.mixing}, ["architecture"], jax.random.key(3)
)
yy, xx = jnp.mgrid[:32, :32]
disc = ((yy - 16) ** 2 + (xx - 14) ** 2 < 80).astype(jnp.uint8)[None]
mask = losses.one_hot_foreground(disc, 2)


@jax.jit
def draw(theta):
    return generator.apply(weights, mask, use(theta)["architecture"], None)


scales = (0.1, 1.0, 10.0) if TOY else (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
logits = jax.tree.map(
    lambda a: jax.random.normal(jax.random.key(4), a.shape), theta["architecture"]
)
gaps, decided = [], []
for scale in scales:
    soft = {"architecture": jax.tree.map(lambda a, s=scale: s * a, logits)}
    hard = outer_variables.discretize(soft)
    gaps.append(float(jnp.abs(draw(soft) - draw(hard)).mean()))
    top = [used.max(-1).mean() for used in use(soft)["architecture"].values()]
    decided.append(float(np.mean(top)))
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(decided, gaps, marker="o")
axis.set_xlabel("mean weight of the strongest candidate")
axis.set_ylabel("mean |soft - discretised|")
plt.show()
assert gaps[-1] < gaps[0]

# %% [markdown]
# ## What the hypergradient does to the weights
#
# A whole training, as small as it gets: phantoms (procedural images), a generator with two cells each
# way, a segmenter. The generator is trained alone first; then both train side by side (`end2end`), and
# every second step the validation loss of the segmenter is differentiated through that step: through
# the segmenter's update, the images it saw, and the generator's own update, into the logits.

# %%
config = cli.load_config("demo:runlocal,method=end2end")
config.data.image_size = 16
config.segmenter.unet.num_levels = config.discriminator.patchgan.num_levels = 1
config.generator.pix2pix.num_levels = 2
config.pretrain.num_steps = 4 if TOY else 60
config.train.num_steps = 8 if TOY else 100
config.outer.every = 2
config.outer_optim.learning_rate = 0.05
config.compilation_cache = ""
config_check.check_config(config)
experiment = build.build(config)

stage = experiment.pretraining()
state = stage.init(None)
for step in range(stage.num_steps):
    state, metrics, _ = stage.advance(state, step)
print(f"generator alone: L1 {float(metrics['generator/l1']):.3f} after {stage.num_steps} steps")

stage = experiment.training("end2end")
state = stage.init(state.players)
history, norms, validation = [], [], []
step = 0
while step < stage.num_steps:
    state, metrics, taken = stage.advance(state, step)
    step += taken
    if "outer/hypergradient_norm" in metrics:
        history.append(jax.device_get(stage.use(state.theta)["architecture"]))
        norms.append(float(metrics["outer/hypergradient_norm"]))
        validation.append(float(metrics["outer/loss"]))
print(f"{len(history)} hypergradients, norm {min(norms):.1e} to {max(norms):.1e}")
assert min(norms) > 0 and np.isfinite(norms).all()

# %%
sides = list(history[0])
cells = history[0][sides[0]].shape[0]
figure, axes = plt.subplots(len(sides), cells, figsize=(2.6 * cells, 4), sharey=True)
for axis_row, side in zip(axes, sides, strict=True):
    for number, axis in enumerate(axis_row):
        for i, k in enumerate(SIZES):
            axis.plot([used[side][number, i] for used in history], label=f"kernel {k}")
        axis.set_title(f"{side} {number}", fontsize=9)
axes[0, 0].legend(fontsize=7)
axes[-1, 0].set_xlabel("hypergradient steps")
axes[0, 0].set_ylabel("mixing weight")
figure.tight_layout()
plt.show()
final = outer_variables.discretize(state.theta)
for side, used in stage.use(final)["architecture"].items():
    print(f"{side}: kernels {[SIZES[int(i)] for i in used.argmax(-1)]} after discretisation")

# %% [markdown]
# What the generator draws now, for masks of the training images: with the mixture, discretised, and the
# real image. So short a training draws blurred images; the demo (`python run.py`) trains longer.

# %%
data = experiment.data
masks, real = data.train["mask"][:4], data.train["image"][:4]
one_hot = losses.one_hot_foreground(jnp.asarray(masks), data.num_classes)
rows = {
    "mask": [pictures.colour_mask(m) for m in masks],
    "mixture": map(pictures.to_uint8, np.asarray(stage.draw(state, one_hot))),
    "discretised": map(
        pictures.to_uint8, np.asarray(stage.draw(state.replace(theta=final), one_hot))
    ),
    "real": map(pictures.to_uint8, np.asarray(real)),
}
figure, axes = plt.subplots(len(rows), 4, figsize=(5, 5))
for axis_row, (title, images) in zip(axes, rows.items(), strict=True):
    axis_row[0].set_ylabel(title)
    for axis, image in zip(axis_row, images, strict=True):
        axis.imshow(image)
        axis.set_xticks([])
        axis.set_yticks([])
figure.tight_layout()
plt.show()

# %% [markdown]
# The weights move, and one candidate may win; whether a segmenter trained with them is any better is a
# question for test images and several draws (notebook 04). That this hypergradient is right is shown in
# `tests/genseg/levels_test.py`, against central differences in 64 bits.
