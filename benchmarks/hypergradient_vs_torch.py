"""The exact hypergradient, and the steps it goes through: ours against PyTorch's, on the same numbers.

pip install torch && python benchmarks/hypergradient_vs_torch.py [--inner_steps=1,4,16]

The problem: a generator with searchable cells draws 8 images, the segmenter (U-Net) takes K Adam steps
on 8 real and 8 drawn images, and its validation loss is differentiated with respect to the architecture
weights. PyTorch does it as one would there: `torch.func.functional_call` and double backward through the
unrolled steps. Both start from the same weights and see the same images. First both are compared in 64
bits at a small size, and the benchmark stops unless losses and hypergradients agree to 1e-9; in the 32
bits that are timed, Adam's first steps divide by tiny gradients, and the difference is only printed.

Then everything is timed in pairs, one of each, in turn: the printed ratio is the median over pairs of
our CPU time over PyTorch's, on one core each (--threads=1), so that waiting threads are not counted.
PyTorch has its default layout here. Memory is the rise of the resident set above what was there before the
call (Linux only).

'darts' is the estimator that Betty (betty-ml) calls so, as its newest source has it: a finite difference
at the weights as they are, without the learning rate. The published releases 0.1.1 and 0.2.0 put
the weights back wrongly, and are not run here.
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import statistics
import sys
import time


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--width", type=int, default=16, help="channels of the U-Net")
    parser.add_argument("--levels", type=int, default=4, help="halvings of the U-Net")
    parser.add_argument("--generator_levels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="real images, and as many drawn ones")
    parser.add_argument("--inner_steps", default="1,4,16", help="K, joined by ','")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs; at most 3 for K > 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
    return parser.parse_args()


ARGS = parse() if __name__ == "__main__" else None
if ARGS is not None:  # before JAX and PyTorch count the cores
    cores = sorted(os.sched_getaffinity(0))[: ARGS.threads]
    os.sched_setaffinity(0, cores)

import functools  # noqa: E402
import gc  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import segmenter_vs_torch  # noqa: E402
import torch  # noqa: E402
from torch.func import functional_call  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fewshotseg.genseg import levels, losses, pair_sources, segmenter  # noqa: E402
from fewshotseg.genseg.outer_variables import OUTER_VARIABLES  # noqa: E402
from fewshotseg.hypergradient import inner_gradient  # noqa: E402
from fewshotseg.models import layers, pix2pix, search_space, unet  # noqa: E402
from fewshotseg.training import estimators, optimizers  # noqa: E402

RATE, EPS, GAMMA = 1e-3, 1e-8, 1.0


class Problem:
    """Weights and images, as numpy arrays; both sides are built from it."""

    def __init__(self, args, dtype=np.float32):
        self.dtype = dtype
        numbers = np.random.default_rng(0)
        shape = (max(args.inner_steps), args.batch, args.size, args.size)
        self.args = args
        self.images = numbers.uniform(-1, 1, (*shape, 3)).astype(dtype)
        self.masks, self.synthetic_masks = (
            (numbers.random(shape) < 0.3).astype(np.uint8) for _ in range(2)
        )
        self.unseen = numbers.uniform(-1, 1, (*shape[1:], 3)).astype(dtype)
        self.unseen_masks = (numbers.random(shape[1:]) < 0.3).astype(np.uint8)
        self.architecture = {
            side: numbers.normal(0, 0.3, (args.generator_levels, 3)).astype(dtype)
            for side in ("encoder", "decoder")
        }
        self.generator = pix2pix.Generator(
            num_levels=args.generator_levels, width=32, max_width=128, dropout_rate=0.0, dtype=dtype
        )
        self.segmenter = unet.UNet(width=args.width, num_levels=args.levels, dtype=dtype)
        image, mask = self.images[0], self.masks[0][..., None].astype(dtype)
        self.generator_params = layers.init_params(
            self.generator, jax.random.key(0), mask, self.architecture, None
        )
        self.segmenter_params = layers.init_params(self.segmenter, jax.random.key(1), image)
        self.generator_params, self.segmenter_params = jax.tree.map(
            lambda x: np.asarray(x, dtype), (self.generator_params, self.segmenter_params)
        )


# --- Ours -----------------------------------------------------------------------------------------


class Ours:
    """The steps and estimators of the package, by the host loop on CPUs and the scan elsewhere."""

    def __init__(self, problem):
        self.problem = problem
        self.compile_seconds = {}
        self.adam = optimizers.create_optimizer("adam", RATE, 1, eps=EPS, differentiable=True)
        tools = pair_sources.Tools(draw=self.draw, use=self.use)
        self.sources = pair_sources.create(["generator"], tools, {})
        self.players = {"segmenter": self.segmenter()}
        self.terms = ((1.0, segmenter.validation_loss(self.segment)),)
        # The generator stands still: a player in the state, of whom no loss is asked.
        adam = levels.Player(loss=None, inputs=None, optimizer=self.adam)
        self.state = {
            "generator": levels.init_player(problem.generator_params, adam),
            "segmenter": levels.init_player(problem.segmenter_params, self.players["segmenter"]),
        }
        self.theta = {"architecture": jax.tree.map(jnp.asarray, problem.architecture)}
        self.unseen = {
            "image": jnp.asarray(problem.unseen),
            "mask": jnp.asarray(problem.unseen_masks),
            "weight": jnp.ones(len(problem.unseen)),
        }

    def use(self, theta):
        """The outer variables in use: of these, the architecture alone moves."""
        mixing = OUTER_VARIABLES["architecture"].use(theta["architecture"], None)
        return {"architecture": mixing, "synthetic_weight": jnp.asarray(GAMMA, self.problem.dtype)}

    def draw(self, state, theta, masks, keys):
        del keys  # no dropout, in PyTorch's generator neither
        mixing = self.use(theta)["architecture"]
        params = {"params": state["generator"].params}
        return self.problem.generator.apply(params, masks, mixing, None)

    def segment(self, params, images, keys):
        del keys
        return self.problem.segmenter.apply({"params": params}, images)

    def segmenter(self):
        """The player, without jitter and without an average of its weights: PyTorch's has neither."""
        options = {"sources": self.sources, "use": self.use, "average_decay": 0.0}
        return segmenter.player(self.segment, lambda images, keys: images, self.adam, **options)

    def estimator(self, name, fields, step, equation=None):
        """That estimator of the validation loss after such steps."""
        loss = functools.partial(levels.outer_loss, terms=self.terms)
        return estimators.create_estimator(name, fields, step, loss, equation)

    def batches(self, num_steps):
        keys = jax.random.split(jax.random.key(0), (num_steps, self.problem.args.batch))
        return {
            "image": jnp.asarray(self.problem.images[:num_steps]),
            "mask": jnp.asarray(self.problem.masks[:num_steps]),
            "synthetic_mask": jnp.asarray(self.problem.synthetic_masks[:num_steps]),
            "synthetic_case": jnp.zeros(keys.shape, jnp.int32),
            "key": keys,
        }

    def _ready(self, name, function):
        started = time.process_time()
        function()
        self.compile_seconds[name] = time.process_time() - started
        return function

    def segmenter_step(self):
        """One step on real and drawn images."""
        batch = jax.tree.map(lambda x: x[0], self.batches(1))
        step = functools.partial(levels.inner_step, players=self.players, moving=("segmenter",))
        step = jax.jit(step)

        def run():
            _, metrics = step(self.state, self.theta, batch, None)
            return float(metrics["segmenter/loss"])

        return self._ready("segmenter step", run)

    def generator_step(self):
        """One Adam step of the generator on the L1 loss."""
        batch = jax.tree.map(lambda x: x[0], self.batches(1))
        masks = losses.one_hot_foreground(batch["mask"], 2)

        @jax.jit
        def step(player, theta, batch):
            def loss(params):
                state = {"generator": player.replace(params=params)}
                return jnp.abs(self.draw(state, theta, masks, None) - batch["image"]).mean()

            value, grads = jax.value_and_grad(loss)(player.params)
            return levels.move(self.players["segmenter"], player, grads), value

        player = self.state["generator"]
        return self._ready("generator step", lambda: float(step(player, self.theta, batch)[-1]))

    def hypergradient(self, num_steps, remat="step"):
        """The exact one, flat."""
        step = functools.partial(levels.inner_step, players=self.players, moving=("segmenter",))
        estimate = self.estimator("unrolled", {"remat": remat}, step)
        name = f"hypergradient, K={num_steps}, remat={remat}"
        return self._ready(name, self._run(estimate, num_steps))

    def darts(self):
        """-M v at the weights as they are, by finite differences; no step is taken."""
        gradient = functools.partial(inner_gradient.finite_difference, radius=1e-2)
        equation = levels.stationarity(
            players=self.players, moving=("segmenter",), gradient=gradient
        )
        estimate = self.estimator(
            "identity", {"step_size": 1.0}, lambda state, *others: (state, {}), equation
        )
        return self._ready("darts", self._run(estimate, 1))

    def _run(self, estimate, num_steps):
        batches = self.batches(num_steps)
        keys = jax.random.split(jax.random.key(0), num_steps)

        def run():
            result = estimate(self.theta, self.state, batches, self.unseen, keys)
            return float(result.loss), flat(jax.device_get(result.grad["architecture"]))

        return run


def flat(architecture):
    return np.concatenate([np.ravel(architecture[side]) for side in ("encoder", "decoder")])


# --- PyTorch's ------------------------------------------------------------------------------------


class TorchGenerator(torch.nn.Module):
    """The network of `fewshotseg.models.pix2pix`, every candidate as a convolution of its own."""

    def __init__(self, problem):
        super().__init__()
        params = problem.generator_params
        self.num_levels = problem.args.generator_levels
        self.cells, self.norms = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        for level in range(self.num_levels):
            for side in ("down", "up"):
                name = f"{side}_{level}"
                self.cells[name] = self._cell(params[name], side == "up")
                if f"{name}_norm" in params:
                    norm = params[f"{name}_norm"]
                    size = norm["scale"].shape[0]
                    module = torch.nn.GroupNorm(min(problem.generator.groups, size), size)
                    module.weight.data = torch.from_numpy(np.array(norm["scale"]))
                    module.bias.data = torch.from_numpy(np.array(norm["bias"]))
                    self.norms[name] = module

    def _cell(self, params, transposed):
        candidates = torch.nn.ModuleList()
        for size in search_space.KERNEL_SIZES:
            kernel = np.asarray(params[f"kernel_{size}"])
            c_in, c_out = kernel.shape[2:]
            kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
            conv = kind(c_in, c_out, size, 2, size // 2 - 1, bias=size == 4)
            kernel = (
                kernel[::-1, ::-1].transpose(2, 3, 0, 1)
                if transposed
                else kernel.transpose(3, 2, 0, 1)
            )
            conv.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
            if size == 4:
                conv.bias.data = torch.from_numpy(np.array(params["bias"]))
            candidates.append(conv)
        return candidates

    def _mix(self, x, name, weights):
        convs = self.cells[name]
        bias = convs[0].bias
        outputs = [c(x) if c.bias is None else c(x) - bias[:, None, None] for c in convs]
        return sum(w * y for w, y in zip(weights, outputs, strict=True)) + bias[:, None, None]

    def forward(self, masks, encoder, decoder):
        x, skips = 2.0 * masks - 1.0, []
        encoder, decoder = encoder.softmax(-1), decoder.softmax(-1)
        for level in range(self.num_levels):
            if level > 0:
                skips.append(x)
                x = torch.nn.functional.leaky_relu(x, 0.2)
            x = self._mix(x, f"down_{level}", encoder[level])
            if f"down_{level}" in self.norms:
                x = self.norms[f"down_{level}"](x)
        for level in reversed(range(self.num_levels)):
            x = self._mix(torch.relu(x), f"up_{level}", decoder[level])
            if level > 0:
                x = torch.cat([skips[level - 1], self.norms[f"up_{level}"](x)], 1)
        return torch.tanh(x)


def torch_loss(logits, masks):
    """`losses.segmentation_loss` in PyTorch."""
    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    p = torch.sigmoid(logits)
    both = (p * masks).sum((2, 3))
    dice = (2 * both + 1) / (p.sum((2, 3)) + masks.sum((2, 3)) + 1)
    return cross.mean((1, 2, 3)) + 1 - dice.mean(1)


def safe_sqrt(x):
    """The square root, with derivative 0 at 0, as in `training/optimizers.py`."""
    positive = x > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)


class Theirs:
    """The same steps and estimators in PyTorch."""

    def __init__(self, problem):
        args = self.args = problem.args
        self.segmenter = segmenter_vs_torch.TorchUNet(args.width, args.levels, 8, 3, axes=2)
        self.segmenter.load(problem.segmenter_params, args.levels)
        self.generator = TorchGenerator(problem)
        self.generator.requires_grad_(False)
        self.weights = {k: v.detach() for k, v in self.segmenter.named_parameters()}

        def images(x):
            return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3)))

        def masks(x):
            return torch.from_numpy(x.astype(problem.dtype)).unsqueeze(-3)

        self.images, self.masks = images(problem.images), masks(problem.masks)
        self.synthetic_masks = masks(problem.synthetic_masks)
        self.unseen, self.unseen_masks = images(problem.unseen), masks(problem.unseen_masks)
        self.architecture = {k: torch.from_numpy(v.copy()) for k, v in problem.architecture.items()}

    def inner_loss(self, weights, architecture, k):
        """On the k-th real and synthetic batch."""
        drawn = self.generator(self.synthetic_masks[k], **architecture)
        inputs = torch.cat([self.images[k], drawn])
        masks = torch.cat([self.masks[k], self.synthetic_masks[k]])
        each = torch_loss(functional_call(self.segmenter, weights, (inputs,)), masks)
        return self.mean_loss(each)

    def mean_loss(self, each):
        """Of real examples, then drawn ones."""
        real, drawn = each[: self.args.batch].mean(), each[self.args.batch :].mean()
        return (real + GAMMA * drawn) / (1 + GAMMA)

    def outer_loss(self, weights):
        return torch_loss(
            functional_call(self.segmenter, weights, (self.unseen,)), self.unseen_masks
        ).mean()

    def unroll(self, architecture, num_steps):
        """Adam, differentiable from the first step: a weight without gradient stays where it is."""
        weights = {k: v.clone().requires_grad_() for k, v in self.weights.items()}
        first = {k: torch.zeros_like(v) for k, v in weights.items()}
        second = {k: torch.zeros_like(v) for k, v in weights.items()}
        for step in range(num_steps):
            loss = self.inner_loss(weights, architecture, step)
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            for (key, weight), g in zip(list(weights.items()), grads, strict=True):
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g * g
                m = first[key] / (1 - 0.9 ** (step + 1))
                v = second[key] / (1 - 0.999 ** (step + 1))
                weights[key] = weight - RATE * m / (safe_sqrt(v) + EPS)
        return weights

    def hypergradient(self, num_steps):
        def run():
            architecture = {k: v.clone().requires_grad_() for k, v in self.architecture.items()}
            loss = self.outer_loss(self.unroll(architecture, num_steps))
            grads = torch.autograd.grad(loss, [architecture["encoder"], architecture["decoder"]])
            return loss.item(), np.concatenate([g.numpy().ravel() for g in grads])

        return run

    def segmenter_step(self):
        optimizer = torch.optim.Adam(self.segmenter.parameters(), RATE)
        start = {k: v.clone() for k, v in self.weights.items()}

        def run():
            optimizer.zero_grad()
            with torch.no_grad():
                drawn = self.generator(self.synthetic_masks[0], **self.architecture)
            inputs = torch.cat([self.images[0], drawn])
            masks = torch.cat([self.masks[0], self.synthetic_masks[0]])
            each = torch_loss(self.segmenter(inputs), masks)
            loss = self.mean_loss(each)
            loss.backward()
            optimizer.step()
            with torch.no_grad():  # every call starts from the same weights, as ours does
                for key, parameter in self.segmenter.named_parameters():
                    parameter.copy_(start[key])
            return loss.item()

        return run

    def generator_step(self):
        self.generator.requires_grad_(True)
        optimizer = torch.optim.Adam(self.generator.parameters(), RATE)
        start = [p.detach().clone() for p in self.generator.parameters()]

        def run():
            self.generator.requires_grad_(True)
            optimizer.zero_grad()
            loss = (
                (self.generator(self.masks[0], **self.architecture) - self.images[0]).abs().mean()
            )
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for parameter, value in zip(self.generator.parameters(), start, strict=True):
                    parameter.copy_(value)
            self.generator.requires_grad_(False)
            return loss.item()

        return run

    def darts(self):
        def run():
            weights = {k: v.clone().requires_grad_() for k, v in self.weights.items()}
            loss = self.outer_loss(weights)
            v = torch.autograd.grad(loss, list(weights.values()))
            radius = 1e-2 / torch.sqrt(sum((x * x).sum() for x in v))
            sides = []
            for sign in (1.0, -1.0):
                architecture = {k: a.clone().requires_grad_() for k, a in self.architecture.items()}
                moved = {
                    k: w.detach() + sign * radius * x
                    for (k, w), x in zip(weights.items(), v, strict=True)
                }
                inner = self.inner_loss(moved, architecture, 0)
                grads = torch.autograd.grad(
                    inner, [architecture["encoder"], architecture["decoder"]]
                )
                sides.append(np.concatenate([g.numpy().ravel() for g in grads]))
            return loss.item(), -(sides[0] - sides[1]) / (2 * radius.item())

        return run


# --- Comparing ------------------------------------------------------------------------------------


def check_numbers(args):
    """Stops unless both give the same hypergradient in 64 bits, for one step and for three."""
    small = dict(size=16, width=4, levels=2, generator_levels=2, batch=2, inner_steps=[3])
    small = argparse.Namespace(**{**vars(args), **small})
    jax.config.update("jax_enable_x64", True)
    problem = Problem(small, np.float64)
    ours, theirs = Ours(problem), Theirs(problem)
    for k in (1, 3):
        name = f"64 bits, {small.size} px, K={k}"
        check(name, ours.hypergradient(k), theirs.hypergradient(k), 1e-9)
    jax.config.update("jax_enable_x64", False)
    jax.clear_caches()


def check(name, ours, theirs, tolerance):
    """Stops unless both functions return the same loss and, if any, the same gradient."""
    a, b = ours(), theirs()
    if isinstance(a, tuple):
        (a, left), (b, right) = a, b
        error = np.linalg.norm(left - right) / np.linalg.norm(right)
        print(
            f"  {name}: hypergradients differ by {error:.1e}, losses by {abs(a - b) / abs(b):.1e}"
        )
        if not error < tolerance:
            sys.exit(f"{name}: the hypergradients differ: {left} here, {right} in PyTorch")
    if not abs(a - b) < min(tolerance, 1e-2) * abs(b):
        sys.exit(f"{name}: the losses differ: {a} here, {b} in PyTorch")


def time_pairs(ours, theirs, pairs):
    """Ratios of CPU time, ours over theirs; the order alternates."""
    ratios, seconds = [], {"ours": [], "theirs": []}
    for i in range(pairs):
        for name, run in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
        ratios.append(seconds["ours"][-1] / seconds["theirs"][-1])
    return ratios, {name: statistics.median(values) for name, values in seconds.items()}


def rise(run):
    """MiB by which the resident set rises during a call, or None where Linux's /proc is missing."""

    def status(field):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    with contextlib.suppress(OSError, StopIteration):
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed goes back first
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = status("VmRSS")
        run()
        return status("VmHWM") - before
    return None


def main(args):
    torch.set_num_threads(args.threads)
    args.inner_steps = [int(k) for k in args.inner_steps.split(",")]
    check_numbers(args)
    problem = Problem(args)
    ours, theirs = Ours(problem), Theirs(problem)
    where = jax.devices()[0].device_kind
    print(
        f"JAX {jax.__version__} on {where}, torch {torch.__version__} on cpu, {args.threads} core(s)"
    )
    pieces = [
        ("segmenter step", ours.segmenter_step, theirs.segmenter_step),
        ("generator step", ours.generator_step, theirs.generator_step),
        ("darts", ours.darts, theirs.darts),
    ]
    pieces += [
        (
            f"hypergradient, K={k}, remat={remat}",
            functools.partial(ours.hypergradient, k, remat),
            functools.partial(theirs.hypergradient, k),
        )
        for k in args.inner_steps
        for remat in (("step",) if k == 1 else ("step", "none"))
    ]
    figures = []
    for name, make_ours, make_theirs in pieces:
        a, b = make_ours(), make_theirs()
        long = any(f"K={k}," in name for k in args.inner_steps if k > 4)
        check(name, a, b, tolerance=np.inf)
        pairs = min(3, args.pairs) if long else args.pairs
        ratios, seconds = time_pairs(a, b, pairs)
        memory = [rise(run) for run in (a, b)]
        figures.append(
            {
                "piece": name,
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "pairs": pairs,
                "seconds": seconds,
                "memory": memory,
                "compile_seconds": ours.compile_seconds[name],
            }
        )
        known = all(m is not None for m in memory)
        print(
            f"{name}: {statistics.median(ratios):.2f} of PyTorch's CPU time "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs; {seconds['ours']:.2f} s against "
            f"{seconds['theirs']:.2f} s)"
            + (f", memory +{memory[0]:.0f} MiB against +{memory[1]:.0f}" if known else "")
            + f", first call {ours.compile_seconds[name]:.0f} CPU-s",
            flush=True,
        )
        if args.output:
            args.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(ARGS)
