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
# # Your own bilevel problem
#
# `from fewshotseg import hypergradient` knows nothing of images: it needs JAX, an inner step and an
# outer loss. Here it learns the **weight decay of every feature** of a logistic regression. Twenty
# features, of which five matter; forty labelled cases to train on, two hundred to validate. Grid search
# over twenty decays is hopeless; one hypergradient costs about as much as a few trainings and says for
# each of the twenty which way to go.
#
# A minute on a CPU.

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

from fewshotseg import hypergradient

jax.config.update("jax_enable_x64", True)
TOY = "FEWSHOTSEG_TOY" in os.environ  # the tests run a smaller one

# %% [markdown]
# ## The problem
#
# The inner loss trains the weights $w$ under decays $\lambda = \sigma(\theta)$, the outer loss judges
# them:
#
# $$L(w, \theta) = \mathrm{CE}(w; \text{train}) + \tfrac12 \sum_j \sigma(\theta_j) w_j^2, \qquad
#   V(w) = \mathrm{CE}(w; \text{validation}).$$
#
# $\theta$ is free and the decay is bounded: a free outer variable runs away.

# %%
FEATURES, RELEVANT = 20, 5
truth = jnp.where(jnp.arange(FEATURES) < RELEVANT, 2.0, 0.0)


def draw(seed, num_cases):
    x, noise = jnp.split(
        jax.random.normal(jax.random.key(seed), (num_cases, FEATURES + 1)), [FEATURES], axis=1
    )
    return x, (x @ truth + noise[:, 0] > 0).astype(float)


train, validation, unseen = draw(0, 40), draw(1, 200), draw(2, 2000)


def cross_entropy(w, data):
    return optax.sigmoid_binary_cross_entropy(data[0] @ w, data[1]).mean()


def train_loss(w, theta, batch, rng):
    decay = jax.nn.sigmoid(theta)
    return cross_entropy(w, train) + 0.5 * (decay * w**2).sum(), {}


def validation_loss(state, theta, data):
    return cross_entropy(state.params, data), {}


# %% [markdown]
# An **inner step** is `gradient_step(loss, optimizer)`; an **estimator** takes the step and the outer
# loss and is a pure function `(theta, state, K batches, validation batch, K keys) -> loss, grad, new
# state`. Ours needs no batches, so they are `None`, and K is the number of keys.

# %%
inner = optax.sgd(0.5)
step = hypergradient.gradient_step(train_loss, inner)
unrolled = jax.jit(hypergradient.unrolled(step, validation_loss))

theta0, w0 = jnp.full(FEATURES, -3.0), jnp.zeros(FEATURES)
start = hypergradient.TrainState(w0, inner.init(w0))


def problem(K, theta=theta0, state=start, seed=0):
    return theta, state, None, validation, jax.random.split(jax.random.key(seed), K)


K = 10 if TOY else 100
exact = unrolled(*problem(K))
print(
    f"validation loss after {K} steps {exact.loss:.4f}, hypergradient of shape {exact.grad.shape}"
)

# %% [markdown]
# ## Is it right?
#
# Three programs that have nothing in common must agree: the derivative by **reverse mode** through the
# K steps (`unrolled`), by **forward mode** (tangents carried along, nothing kept), and **central
# differences**, which train forty times with one decay moved a little. The first is what JAX
# differentiates, the last knows no derivative at all.

# %%
open_step = hypergradient.gradient_step(
    train_loss, inner, gradient=hypergradient.inner_gradient.reverse
)
forward = jax.jit(hypergradient.forward_mode(open_step, validation_loss))
V = jax.jit(lambda theta: unrolled(*problem(K, theta)).loss)
h = 1e-5
units = jnp.eye(FEATURES)
differences = jnp.stack([(V(theta0 + h * e) - V(theta0 - h * e)) / (2 * h) for e in units])
tangents = forward(*problem(K)).grad


def worst(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


print(f"unrolled against central differences: {worst(exact.grad, differences):.1e}")
print(f"forward mode against unrolled:        {worst(tangents, exact.grad):.1e}")
assert worst(exact.grad, differences) < 1e-6 and worst(tangents, exact.grad) < 1e-12

figure, axis = plt.subplots(figsize=(7, 3))
at = np.arange(FEATURES)
axis.bar(at, exact.grad, color=np.where(at < RELEVANT, "tab:orange", "tab:blue"), label="unrolled")
axis.plot(at, differences, "k.", label="central differences")
axis.plot(at, tangents, "o", markerfacecolor="none", color="black", label="forward mode")
axis.set_xticks(at)
axis.set_xlabel("feature (orange: it matters)")
axis.set_ylabel(r"$dV / d\theta_j$")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# A negative bar says: more decay on this feature lowers the validation loss.
#
# ## What each costs
#
# Reverse mode keeps something of every step, forward mode carries twenty tangents and keeps nothing.
# Temporary memory of the compiled programs, as XLA reports it:

# %%
lengths = (4, 16) if TOY else (10, 40, 160, 640)
programs = {"unrolled": unrolled, "forward mode": forward}
figure, axis = plt.subplots(figsize=(5, 3))
for name, program in programs.items():
    needs = [
        program.lower(*problem(n)).compile().memory_analysis().temp_size_in_bytes / 1024
        for n in lengths
    ]
    axis.plot(lengths, needs, marker="o", label=name)
axis.set_xscale("log")
axis.set_yscale("log")
axis.set_xlabel("K, steps differentiated through")
axis.set_ylabel("temporary memory (KiB)")
axis.legend()
plt.show()

# %% [markdown]
# So: many outer variables and short trainings, reverse mode; few outer variables and long trainings,
# forward mode. And where neither fits, something approximate: the last steps alone (`truncated`), or
# the implicit function theorem at the end (`conjugate_gradient`).

# %%
equation = hypergradient.stationarity(train_loss)
estimators = {
    "unrolled": unrolled,
    "truncated, 5 steps": jax.jit(
        hypergradient.truncated(step, validation_loss, horizon=min(5, K))
    ),
    "one_step": jax.jit(hypergradient.one_step(step, validation_loss)),
    "conjugate_gradient": jax.jit(
        hypergradient.implicit_gradient(
            step,
            validation_loss,
            equation,
            hypergradient.conjugate_gradient(num_terms=20, damping=1e-3),
        )
    ),
}
trained = problem(K, state=exact.inner_state)  # after K steps, K more
reference = unrolled(*problem(2 * K)).grad
for name, estimate in estimators.items():
    grad = estimate(*trained).grad
    cosine = grad @ reference / jnp.linalg.norm(grad) / jnp.linalg.norm(reference)
    print(f"{name:20} cosine to the hypergradient of all {2 * K} steps {float(cosine):.3f}")

# %% [markdown]
# ## Using it
#
# Outer steps by Adam, twenty inner steps each, training on from where it was. Beside it the best
# **single** decay for all features, by grid search: the usual way.

# %%
outer = optax.adam(0.1)


@jax.jit
def outer_step(theta, state, opt, key):
    result = unrolled(theta, state, None, validation, jax.random.split(key, 20))
    updates, opt = outer.update(result.grad, opt)
    return optax.apply_updates(theta, updates), result.inner_state, opt, result.loss


def fully_trained(theta):
    return unrolled(*problem(50 if TOY else 1000, theta)).inner_state.params


started = time.perf_counter()
theta, state, opt, history = theta0, start, outer.init(theta0), []
for i in range(30 if TOY else 150):
    theta, state, opt, loss = outer_step(theta, state, opt, jax.random.key(i))
    history.append(float(loss))
seconds = time.perf_counter() - started

grid = jnp.logspace(-4, 0, 5 if TOY else 17)
logits = jnp.log(grid) - jnp.log1p(-jnp.minimum(grid, 0.999))
weights_of_grid = [fully_trained(jnp.full(FEATURES, x)) for x in logits]
best = min(range(len(grid)), key=lambda i: float(cross_entropy(weights_of_grid[i], validation)))
w_found, w_grid = fully_trained(theta), weights_of_grid[best]
print(f"{'':28}{'validation':>11}{'unseen':>9}")
for name, w in (
    ("no decay to speak of", weights_of_grid[0]),
    (f"one decay, grid: {float(grid[best]):.3f}", w_grid),
    ("twenty, hypergradient", w_found),
):
    losses = (float(cross_entropy(w, data)) for data in (validation, unseen))
    print(f"{name:28}{next(losses):11.4f}{next(losses):9.4f}")
print(f"{len(history)} outer steps took {seconds:.1f} s, compilation included")

# %%
decay = jax.nn.sigmoid(theta)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(history)
left.set_xlabel("outer step")
left.set_ylabel("validation loss")
right.bar(at, decay, color=np.where(at < RELEVANT, "tab:orange", "tab:blue"))
right.axhline(float(grid[best]), color="grey", linestyle="--", label="best single decay")
right.set_xlabel("feature (orange: it matters)")
right.set_ylabel("decay found")
right.legend(fontsize=8)
figure.tight_layout()
plt.show()
assert decay[:RELEVANT].mean() < decay[RELEVANT:].mean()

# %% [markdown]
# Validation cases were used to find twenty numbers, so the column *unseen* is the one to believe.
#
# For a problem of your own, change `train_loss`, `validation_loss` and what $\theta$ means. Keep four
# things: everything from $\theta$ to the validation loss differentiable; outer variables bounded;
# optimisers whose derivative is finite where a gradient is 0 (`optax.adam(..., eps_root=...)`); and the
# check against central differences, in 64 bits, before anything else.
# [docs/estimators.md](../docs/estimators.md) lists what there is; notebook 01 derives it.
