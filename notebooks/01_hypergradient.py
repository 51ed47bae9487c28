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
# # Hypergradients from zero
#
# A **bilevel** problem has two losses. The inner one trains weights $w$, and depends on *outer variables*
# $A$ (in this project: the architecture of the generator that draws training images). The outer one, $V$,
# judges the trained weights on validation data. We want $dV/dA$, *through* the training: the
# **hypergradient**.
#
# This notebook computes it in every way that `fewshotseg` offers: first for one number, where everything
# can be checked by hand, then for a two-layer network. It takes two minutes on a CPU.

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
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from fewshotseg import hypergradient as hg
from fewshotseg.hypergradient import inner_gradient

jax.config.update("jax_enable_x64", True)
TOY = "FEWSHOTSEG_TOY" in os.environ  # the tests run a smaller one

# %% [markdown]
# ## 1. One number
#
# $L = \frac h2 (w - A)^2$ pulls $w$ towards $A$; $V = \frac12 (w - t)^2$ judges it. Gradient descent at
# rate $\eta$ shrinks $w - A$ by $1 - \eta h$ per step, so with $D = w_K - t$ the hypergradient of $K$
# steps is $(1 - (1-\eta h)^K) D$, and $D$ if training converges.
#
# An estimator is made from an *inner step* and an *outer loss*, both pure functions, and is one itself:
# wrap it in `jax.jit`. The inner step gets its gradient from `inner_gradient.mixed`, so that
# differentiating it once more is cheap.

# %%
h, eta, alpha, t = 1.7, 0.2, 0.3, 0.4


def loss(w, A, batch):
    return 0.5 * h * (w - A) ** 2, {}


def inner_step(w, A, batch, rng):
    (value, _), g = inner_gradient.mixed(loss)(w, A, batch)
    return w - eta * g, {"loss": value}


def outer_loss(w, A, batch):
    return 0.5 * (w - t) ** 2, {}


K = 4
args = (
    jnp.float64(-1.2),
    jnp.float64(3.0),
    jnp.zeros(K),
    None,
    jax.random.split(jax.random.key(0), K),
)
result = hg.unrolled(inner_step, outer_loss)(*args)
D = float(result.inner_state) - t
print("unrolled  ", float(result.grad), "  by hand ", (1 - (1 - eta * h) ** K) * D)

# %% [markdown]
# The second family does not look at the steps. At a converged $w$, $g(w, A) = 0$, and the implicit function
# theorem gives $dV/dA = \nabla_A V - M^\top H^{-1} v$. It needs the inner problem as an equation, and
# a *solver* for $H^{-1} v$:

# %%
equation = hg.Stationarity(
    weights=lambda w: w,
    replace=lambda state, w: w,
    gradient=lambda w, A, batch, rng: inner_gradient.mixed(loss)(w, A, batch)[1],
    update=lambda g, w: -eta * g,
)


def implicit(solver):
    return hg.implicit_gradient(inner_step, outer_loss, equation, solver)


estimators = {
    "unrolled": (hg.unrolled(inner_step, outer_loss), 1 - (1 - eta * h) ** K),
    "truncated, k=2": (
        hg.truncated(inner_step, outer_loss, horizon=2),
        1 - (1 - eta * h) ** 2,
    ),
    "one_step": (hg.one_step(inner_step, outer_loss), eta * h),
    "identity": (implicit(hg.identity(step_size=alpha)), alpha * h),
    "neumann, n=5": (
        implicit(hg.neumann(num_terms=5, step_size=alpha)),
        1 - (1 - alpha * h) ** 6,
    ),
    "conjugate_gradient": (
        implicit(hg.conjugate_gradient(num_terms=1, damping=0.1)),
        h / (h + 0.1),
    ),
    "sama": (implicit(hg.sama()), eta * h),
    "evolution_strategies": (
        hg.evolution_strategies(inner_step, outer_loss, num_pairs=400, sigma=0.1),
        1 - (1 - eta * h) ** K,
    ),
}
print(f"{'':22}{'estimate':>10}{'by hand':>10}")
for name, (estimate, factor) in estimators.items():
    print(f"{name:22}{float(estimate(*args).grad):10.4f}{factor * D:10.4f}")

# %% [markdown]
# All agree with the formulas, `evolution_strategies` up to its noise. None but the unrolled ones is "the"
# hypergradient of four steps; each is right about something else.
#
# ## 2. A two-layer network with wrong labels
#
# Sixty training points, a third of them with the wrong label; twenty clean validation points. The outer
# variables are the *weights of the training points*: the hypergradient should find the wrong ones.

# %%
numbers = np.random.default_rng(0)


def draw_points(n):
    x = numbers.uniform(-1, 1, (n, 2))
    return jnp.asarray(x), jnp.asarray((np.sin(3 * x[:, 0]) > 2 * x[:, 1]).astype(float))


x_train, y_true = draw_points(60)
wrong = np.arange(60) % 3 == 0
y_train = jnp.where(wrong, 1 - y_true, y_true)
validation = draw_points(20)
optimizer = optax.adam(0.03, eps_root=1e-8)  # eps_root: or the derivative of Adam is NaN


def predict(w, x):
    return jax.nn.silu(x @ w["in"] + w["bias"]) @ w["out"]


def train_loss(w, A, batch, rng):
    each = optax.sigmoid_binary_cross_entropy(predict(w, x_train), y_train)
    ridge = sum((p**2).sum() for p in jax.tree.leaves(w))
    return (jax.nn.sigmoid(A) * each).mean() + 1e-3 * ridge, {}


def make_step(gradient=inner_gradient.mixed):
    return hg.gradient_step(train_loss, optimizer, gradient=gradient)


def validation_loss(state, A, batch):
    x, y = batch
    return optax.sigmoid_binary_cross_entropy(predict(state.params, x), y).mean(), {}


w = {
    "in": jnp.asarray(numbers.normal(0, 1, (2, 16))),
    "bias": jnp.zeros(16),
    "out": jnp.asarray(numbers.normal(0, 0.3, 16)),
}
start = hg.TrainState(w, optimizer.init(w))
A = jnp.zeros(60)


def problem(K, state=start):
    return A, state, jnp.zeros(K), validation, jax.random.split(jax.random.key(0), K)


def cosine(a, b):
    return float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))


# %% [markdown]
# First the proof: the hypergradient of 20 steps equals central differences.

# %%
exact = jax.jit(hg.unrolled(make_step(), validation_loss))
grad = exact(*problem(20)).grad
direction = jnp.asarray(numbers.standard_normal(60))
V = jax.jit(lambda A: exact(A, *problem(20)[1:]).loss)
step = 1e-5
difference = (V(A + step * direction) - V(A - step * direction)) / (2 * step)
print("hypergradient", float(grad @ direction), " central differences", float(difference))
assert abs(float(grad @ direction) / float(difference) - 1) < 1e-6

# %% [markdown]
# ### Bias against the length of the unroll
#
# We train for 400 steps and take the hypergradient of all of them as the truth. What do estimators see that
# look back less far, or not at all?

# %%
LONG = 400
truth = exact(*problem(LONG))
trained = problem(1, truth.inner_state)
equation = hg.stationarity(train_loss, optimizer)


def stay(state, A, batch, rng):
    return state, {}


def implicit(solver, step=stay):
    return jax.jit(hg.implicit_gradient(step, validation_loss, equation, solver))


lengths = (1, 8) if TOY else (1, 2, 4, 8, 16, 32, 64, 128, 256)
curves = {"truncated (k)": [], "neumann (n)": [], "conjugate_gradient (n)": []}
for n in lengths:
    estimate = jax.jit(hg.truncated(make_step(), validation_loss, horizon=n))
    curves["truncated (k)"].append(cosine(estimate(*problem(LONG)).grad, truth.grad))
    estimate = implicit(hg.neumann(num_terms=n, step_size=1.0))
    curves["neumann (n)"].append(cosine(estimate(*trained).grad, truth.grad))
    estimate = implicit(hg.conjugate_gradient(num_terms=n, damping=1e-2))
    curves["conjugate_gradient (n)"].append(cosine(estimate(*trained).grad, truth.grad))
single = {"identity": implicit(hg.identity(step_size=1.0)), "sama": implicit(hg.sama())}
figure, axis = plt.subplots(figsize=(6, 3.5))
for name, values in curves.items():
    axis.plot(lengths, values, marker="o", label=name)
for (name, estimate), style in zip(single.items(), (":", "--"), strict=True):
    value = cosine(estimate(*trained).grad, truth.grad)
    axis.axhline(value, linestyle=style, color="grey", label=name)
axis.set_xscale("log", base=2)
axis.set_xlabel("steps back, or terms")
axis.set_ylabel("cosine to the hypergradient of 400 steps")
axis.set_ylim(min(0, axis.get_ylim()[0]), 1.02)
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# The longer the horizon, the closer to the truth, by any road. On this small problem even one step back
# points about the right way; a Neumann series needs tens of terms for what conjugate gradients see in
# two, which then stop at the bias of their damping. It is not so on every problem: the same comparison on a
# segmentation problem is `python run.py --mode=hypergradient`.
#
# ### Memory against K
#
# What XLA needs beside inputs and results, for the compiled loop, by what is kept of the steps (`remat`)
# and by how the inner gradient is differentiated. (With remat, both ways of differentiating need the same;
# `mixed` is the faster one.)

# %%
variants = {
    "reverse, keep all": (inner_gradient.reverse, "none"),
    "reverse, remat step": (inner_gradient.reverse, "step"),
    "mixed, remat step": (inner_gradient.mixed, "step"),
    "mixed, remat sqrt": (inner_gradient.mixed, "sqrt"),
}
steps = (4, 16) if TOY else (4, 16, 64, 256)
figure, axis = plt.subplots(figsize=(6, 3.5))
for name, (gradient, remat) in variants.items():
    estimate = jax.jit(hg.unrolled(make_step(gradient), validation_loss, remat=remat))
    needs = [
        estimate.lower(*problem(K)).compile().memory_analysis().temp_size_in_bytes / 1024
        for K in steps
    ]
    axis.plot(steps, needs, marker="o", label=name)
axis.set_xscale("log", base=2)
axis.set_yscale("log")
axis.set_xlabel("K")
axis.set_ylabel("temporary memory (KiB)")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 3. Using it
#
# Outer steps on the weights of the points, ten inner steps each, training on from where it was. The wrong
# labels lose their weight, with any estimator that is not blind.

# %%
outer_optimizer = optax.adam(0.1)


def meta_train(estimate, rounds=60, K=10):
    A, state = jnp.zeros(60), start
    opt = outer_optimizer.init(A)
    for i in range(rounds):
        keys = jax.random.split(jax.random.key(i), K)
        result = estimate(A, state, jnp.zeros(K), validation, keys)
        updates, opt = outer_optimizer.update(result.grad, opt)
        A, state = optax.apply_updates(A, updates), result.inner_state
    weights = jax.nn.sigmoid(A)
    return float(weights[wrong].mean()), float(weights[~wrong].mean()), float(result.loss)


choices = {
    "unrolled": jax.jit(hg.unrolled(make_step(), validation_loss)),
    "one_step": jax.jit(hg.one_step(make_step(), validation_loss)),
    "neumann": implicit(hg.neumann(num_terms=20, step_size=1.0), make_step()),
    "sama": implicit(hg.sama(), make_step()),
    "evolution_strategies": jax.jit(
        hg.evolution_strategies(make_step(), validation_loss, num_pairs=30, sigma=0.3)
    ),
}
print(f"{'':22}{'wrong':>8}{'right':>8}{'V':>8}{'seconds':>9}")
outcome = {}
for name, estimate in choices.items():
    started = time.perf_counter()
    outcome[name] = bad, good, V_end = meta_train(estimate)
    print(f"{name:22}{bad:8.3f}{good:8.3f}{V_end:8.3f}{time.perf_counter() - started:9.1f}")
assert outcome["unrolled"][0] < outcome["unrolled"][1] - 0.1

# %% [markdown]
# To go on: the docstrings have the formula, the cost, the bias and the source of each, `docs/estimators.md`
# another problem in 40 lines; `python run.py --mode=hypergradient` makes the same comparison on a
# segmentation problem, with your images.
