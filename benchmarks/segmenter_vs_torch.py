"""One training step of the segmenter (forward, loss, backward, Adam): ours against PyTorch's.

pip install torch && python benchmarks/segmenter_vs_torch.py
    --size=24,32,24 --width=8 --levels=3 --batch=2      of volumes

Both start from the same weights and see the same batch; the losses are compared before anything is
timed. Steps are then timed in pairs, one of each, and the median of the ratios is printed: on a shared
machine, absolute times mean little. Both run on one core: threads that wait count as CPU time. PyTorch has
its faster layout, channels_last.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from fewshotseg.genseg import losses
from fewshotseg.models import layers, unet
from fewshotseg.training import optimizers


class TorchUNet(torch.nn.Module):
    """The network of `fewshotseg.models.unet`, from PyTorch's own layers."""

    def __init__(self, width, num_levels, groups, channels, axes):
        super().__init__()
        self.axes = axes
        sizes = [width * 2**i for i in range(num_levels + 1)]
        self.down = torch.nn.ModuleList()
        for i, size in enumerate(sizes):
            self.down.append(self._double(channels if i == 0 else sizes[i - 1], size, groups))
        self.resize = torch.nn.ModuleList(
            self._layer("ConvTranspose")(sizes[i + 1], sizes[i], 2, 2) for i in range(num_levels)
        )
        self.up = torch.nn.ModuleList(
            self._double(2 * sizes[i], sizes[i], groups) for i in range(num_levels)
        )
        self.logits = self._layer("Conv")(width, 1, 1)

    def _layer(self, name):
        return getattr(torch.nn, f"{name}{self.axes}d")

    def _double(self, c_in, c_out, groups):
        conv = self._layer("Conv")
        return torch.nn.Sequential(
            conv(c_in, c_out, 3, padding=1, bias=False),
            torch.nn.GroupNorm(min(groups, c_out), c_out),
            torch.nn.ReLU(),
            conv(c_out, c_out, 3, padding=1, bias=False),
            torch.nn.GroupNorm(min(groups, c_out), c_out),
            torch.nn.ReLU(),
        )

    def forward(self, x):
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = self._layer("MaxPool")(2)(x)
        x = self.down[-1](x)
        for i in reversed(range(len(self.up))):
            x = self.up[i](torch.cat([skips[i], self.resize[i](x)], 1))
        return self.logits(x)

    def load(self, params, num_levels):
        """Takes over Flax parameters; ours stores transposed kernels flipped against PyTorch's."""

        def copy(parameter, array):
            parameter.data = torch.from_numpy(np.array(array))

        spatial = tuple(range(self.axes))
        lie = (self.axes + 1, self.axes, *spatial)  # outputs, inputs, space

        def double(block, name):
            for j in range(2):
                kernel = np.asarray(params[f"{name}_conv_{j}"]["kernel"])
                copy(block[3 * j].weight, kernel.transpose(lie))
                copy(block[3 * j + 1].weight, np.asarray(params[f"{name}_norm_{j}"]["scale"]))
                copy(block[3 * j + 1].bias, np.asarray(params[f"{name}_norm_{j}"]["bias"]))

        for i in range(num_levels):
            double(self.down[i], f"down_{i}")
            double(self.up[i], f"up_{i}")
            resize = params[f"up_{i}_resize"]
            flipped = np.flip(np.asarray(resize["kernel"]), spatial)
            copy(self.resize[i].weight, flipped.transpose(self.axes, self.axes + 1, *spatial))
            copy(self.resize[i].bias, np.asarray(resize["bias"]))
        double(self.down[-1], "bottom")
        copy(self.logits.weight, np.asarray(params["logits"]["kernel"]).transpose(lie))
        copy(self.logits.bias, np.asarray(params["logits"]["bias"]))


def channels_last(axes):
    """PyTorch's faster layout on CPUs."""
    return torch.channels_last if axes == 2 else torch.channels_last_3d


def jax_step(args, network, params, images, masks):
    """A function without arguments that takes one step and returns the loss."""
    optimizer = optimizers.create_optimizer("adam", 1e-3, 1)
    state = [params, optimizer.init(params)]

    @jax.jit
    def step(params, opt, images, masks):
        def loss(params):
            logits = network.apply({"params": params}, images)
            return losses.segmentation_loss(logits, masks).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    def run():
        *state[:], value = step(*state, images, masks)
        return float(value)

    return run


def torch_step(args, params, images, masks):
    """The same in PyTorch."""
    axes = images.ndim - 2
    network = TorchUNet(args.width, args.levels, 8, images.shape[-1], axes)
    network.load(params, args.levels)
    layout = channels_last(axes)
    network.to(memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    images = torch.from_numpy(np.array(images.transpose(0, axes + 1, *range(1, axes + 1))))
    images = images.contiguous(memory_format=layout)
    spatial = tuple(range(2, axes + 2))
    masks = torch.from_numpy(np.array(masks, np.float32))[:, None]

    def run():
        optimizer.zero_grad()
        logits = network(images)
        cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
        p = torch.sigmoid(logits)
        both = (p * masks).sum(spatial)
        dice = (2 * both + 1) / (p.sum(spatial) + masks.sum(spatial) + 1)
        loss = cross + (1 - dice).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="64", help="pixels; of volumes depth,height,width")
    parser.add_argument("--width", type=int, default=16, help="channels at full resolution")
    parser.add_argument("--levels", type=int, default=4, help="halvings")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=15, help="timed pairs of steps")
    parser.add_argument("--threads", type=int, default=1, help="cores for each")
    args = parser.parse_args()
    # Threads that wait for work count as CPU time: both get the same few cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)
    size = tuple(map(int, args.size.split(",")))
    shape = (args.batch, *(size * 2 if len(size) == 1 else size))
    channels = 3 if len(shape) == 3 else 1
    images = jax.random.uniform(jax.random.key(0), (*shape, channels), minval=-1, maxval=1)
    masks = jax.random.bernoulli(jax.random.key(1), 0.3, shape).astype(jnp.uint8)
    network = unet.UNet(width=args.width, num_levels=args.levels)
    params = layers.init_params(network, jax.random.key(2), images)
    ours = jax_step(args, network, params, images, masks)
    theirs = torch_step(args, params, images, masks)
    for _ in range(3):
        a, b = ours(), theirs()
        if abs(a - b) > 1e-3 * abs(b):
            raise SystemExit(f"the steps differ: loss {a} here, {b} in PyTorch")
    ratios = []
    for i in range(args.pairs):
        times = {}
        for name, run in (("jax", ours), ("torch", theirs))[:: 1 if i % 2 else -1]:
            started = time.process_time()
            run()
            times[name] = time.process_time() - started
        ratios.append(times["jax"] / times["torch"])
    low, high = min(ratios), max(ratios)
    print(
        f"{args.size} px, width {args.width}, batch {args.batch}, {args.threads} core(s): JAX / PyTorch "
        "CPU time per step "
        f"{statistics.median(ratios):.2f} (median of {args.pairs} pairs, {low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    main()
