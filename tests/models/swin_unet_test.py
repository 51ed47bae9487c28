"""Swin-Unet: its count, its windows by hand and by the authors' rules, and the names of its weights."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import tiny

from fewshotseg import errors
from fewshotseg.models import factory, swin, swin_unet

TINY = {"width": 8, "depths": (1, 2), "window": 3}


@pytest.mark.parametrize(
    ("classes", "shape", "number"),
    [
        (9, (2, 224, 224, 3), 27_168_900),
        (9, (1, 97, 65, 3), 27_168_900),
        (1, (1, 96, 96, 1), 27_168_132),
    ],
)
def test_it_has_the_parameters_of_the_authors(classes, shape, number):
    params, logits = networks.shapes_of(swin_unet.SwinUnet(classes), *shape)
    assert networks.count(params) == number and logits.shape == (*shape[:-1], classes)


@pytest.mark.parametrize("shape", [(1, 33, 30, 1), (1, 1, 5, 3), (1, 9, 10, 7, 1)])
def test_logits_have_the_size_of_the_image(shape):
    _, logits = networks.shapes_of(swin_unet.SwinUnet(3, **TINY), *shape)
    assert logits.shape == (*shape[:-1], 3) and logits.dtype == jnp.float32


def test_windows_are_put_together_again():
    x = jnp.arange(2 * 4 * 6 * 4 * 3.0).reshape(2, 4, 6, 4, 3)
    windows = swin.split(x, (2, 3, 4))
    assert windows.shape == (2, 4, 24, 3)
    np.testing.assert_array_equal(windows[1, 1], x[1, :2, 3:].reshape(24, 3))
    np.testing.assert_array_equal(swin.join(windows, (4, 6, 4), (2, 3, 4)), x)


def authors_mask(size, window, shift):
    """The shifted windows' mask as the authors make it, of numbered regions (their code, in NumPy)."""
    regions, number = np.zeros((size, size)), 0
    slices = slice(0, -window), slice(-window, -shift), slice(-shift, None)
    for rows in slices:
        for columns in slices:
            regions[rows, columns], number = number, number + 1
    n = size // window
    of_window = regions.reshape(n, window, n, window).swapaxes(1, 2).reshape(n * n, -1)
    return of_window[:, None] == of_window[:, :, None]


def test_who_sees_whom():
    found = swin.may_attend((21, 21), (7, 7), (3, 3))
    np.testing.assert_array_equal(found, authors_mask(21, 7, 3))
    assert swin.may_attend((6, 8), (3, 4), (0, 0)).all()
    # Five tokens in windows of three, the sixth is filling.
    np.testing.assert_array_equal(
        swin.may_attend((5,), (3,), (0,))[1], [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    )


def test_relative_places_are_those_of_the_authors():
    """Their construction, for a whole window; a smaller one has the same row for the same step."""
    coords = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij")).reshape(2, -1)
    steps = (coords[:, :, None] - coords[:, None, :]).transpose(1, 2, 0) + 6
    np.testing.assert_array_equal(
        swin.relative_places((7, 7), 7), steps[..., 0] * 13 + steps[..., 1]
    )
    whole = swin.relative_places((7, 7), 7).reshape(7, 7, 7, 7)
    small = swin.relative_places((2, 5), 7).reshape(2, 5, 2, 5)
    np.testing.assert_array_equal(small, whole[:2, :5, :2, :5])


def test_filling_and_far_ends_do_not_reach_a_token():
    """What a token becomes depends on its window: not on tokens that the shift puts beside it."""
    block = swin.Block(heads=1, window=3, shifts=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 4)), jnp.float32)
    params = block.init(jax.random.key(0), x)
    apply = tiny.jit(block.apply)
    jacobian = tiny.jit(jax.jacobian(lambda x: block.apply(params, x)[0].sum(-1)))(x)
    reach = np.abs(np.asarray(jacobian))[:, 0].sum(-1) > 1e-9  # [8 out, 8 in]
    # Windows 1-3, 4-6 of the shifted tokens; 7 alone (with filling), 0 alone.
    wanted = np.zeros((8, 8), bool)
    for group in ([0], [1, 2, 3], [4, 5, 6], [7]):
        wanted[np.ix_(group, group)] = True
    np.testing.assert_array_equal(reach, wanted)
    assert np.isfinite(apply(params, x)).all()


def test_bfloat16_is_close_to_float32():
    networks.assert_bfloat16_is_close(swin_unet.SwinUnet(2, **TINY), share=0.1)


def test_weights_start_as_the_authors_do():
    params = factory.network(swin_unet.SwinUnet(1, **TINY), jnp.zeros((1, 16, 16, 3)), None).init(
        jax.random.key(3)
    )
    block = params["encoder"]["stage_0_0"]
    assert np.std(block["fc1"]["kernel"]) == pytest.approx(0.02, rel=0.2)
    assert not np.any(block["fc1"]["bias"]) and np.all(block["norm1"]["scale"] == 1)


# --- Weights -------------------------------------------------------------------------------------


def names_of_swin(depths=(2, 2, 6, 2), width=96, window=7, late=True, head="head.fc"):
    """Names and shapes of timm (0.9 and later if `late`), by its rules and not by the tables."""
    found = {"patch_embed.proj.weight": (width, 3, 4, 4), "patch_embed.proj.bias": (width,)}

    def linear(name, out, features, bias=True):
        found[f"{name}.weight"] = (out, features)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name, channels):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (channels,)

    norm("patch_embed.norm", width)
    for i, depth in enumerate(depths):
        channels = width * 2**i
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            norm(f"{name}.norm1", channels)
            norm(f"{name}.norm2", channels)
            heads = max(1, channels // 32)
            found[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            found[f"{name}.attn.relative_position_index"] = (window**2, window**2)
            if j % 2:
                found[f"{name}.attn_mask"] = (4, window**2, window**2)
            linear(f"{name}.attn.qkv", 3 * channels, channels)
            linear(f"{name}.attn.proj", channels, channels)
            linear(f"{name}.mlp.fc1", 4 * channels, channels)
            linear(f"{name}.mlp.fc2", channels, 4 * channels)
        if i < len(depths) - 1:
            name = f"layers.{i + 1 if late else i}.downsample"
            norm(f"{name}.norm", 4 * channels)
            linear(f"{name}.reduction", 2 * channels, 4 * channels, bias=False)
    norm("norm", channels)
    linear(head, 1000, channels)
    return found


def names_of_swin_unet(classes=9, depths=(2, 2, 2, 2), width=96, window=7):
    """The authors' `SwinTransformerSys`."""
    found = names_of_swin(depths, width, window, late=False)
    found = {name: shape for name, shape in found.items() if not name.startswith("head")}
    last = len(depths) - 1
    for i in range(1, last + 1):
        channels = width * 2 ** (last - i)
        like = [n for n in found if n.startswith(f"layers.{last - i}.blocks")]
        found |= {n.replace(f"layers.{last - i}", f"layers_up.{i}"): found[n] for n in like}
        name = "layers_up.0" if i == 1 else f"layers_up.{i - 1}.upsample"
        found[f"{name}.expand.weight"] = (4 * channels, 2 * channels)
        found[f"{name}.norm.weight"] = found[f"{name}.norm.bias"] = (channels,)
        found[f"concat_back_dim.{i}.weight"] = (channels, 2 * channels)
        found[f"concat_back_dim.{i}.bias"] = (channels,)
    found["norm_up.weight"] = found["norm_up.bias"] = (width,)
    found["up.expand.weight"] = (16 * width, width)
    found["up.norm.weight"] = found["up.norm.bias"] = (width,)
    return found | {"output.weight": (classes, width, 1, 1)}


def draw(shapes, seed=0):
    numbers = np.random.default_rng(seed)
    return {
        name: numbers.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()
    }


def same_shapes(ours, theirs):
    flat = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (ours, theirs)]
    assert {p: x.shape for p, x in flat[0].items()} == {p: x.shape for p, x in flat[1].items()}


def ones(names):
    return {name: np.broadcast_to(np.float32(1.0), shape) for name, shape in names.items()}


@pytest.mark.parametrize("late", [True, False])
def test_names_of_timm_fill_the_encoder_and_the_blocks_of_the_decoder(late):
    names = names_of_swin(late=late, head="head.fc" if late else "head")
    given = swin_unet.from_pytorch(ones(names), 9)
    params, _ = networks.shapes_of(swin_unet.SwinUnet(9), 1, 64, 64, 3)
    assert given.keys() == {"encoder", *(f"up_{i}_{j}" for i in (1, 2, 3) for j in (0, 1))}
    same_shapes({part: params[part] for part in given}, given)


def test_names_of_the_authors_fill_everything():
    given = swin_unet.from_pytorch(ones(names_of_swin_unet()), 9)
    params, _ = networks.shapes_of(swin_unet.SwinUnet(9), 1, 64, 64, 3)
    same_shapes(params, given)
    assert "logits" not in swin_unet.from_pytorch(ones(names_of_swin_unet()), 3)
    assert networks.count(given) == 27_168_900


def test_tensors_of_another_network_are_refused():
    names = names_of_swin()
    name = "layers.2.blocks.1.mlp.fc2.bias"
    for other, reason in (
        ({k: v for k, v in names.items() if k != name}, f"'{name}' is missing"),
        ({**names, name: (5,)}, r"has shape \(5,\), not \(384,\)"),
        ({**names, "layers.4.blocks.0.norm1.bias": (3,)}, "belongs nowhere"),
    ):
        with pytest.raises(errors.InputError, match=reason):
            swin_unet.from_pytorch(ones(other), 9)


def forward_by_the_book(t, image, depths, window):
    """The authors' network, block by block on single windows, for sizes that are multiples of all."""

    def linear(x, name):
        y = x @ t[f"{name}.weight"].T
        return y + t[f"{name}.bias"] if f"{name}.bias" in t else y

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attention(x, name, mask):  # [tokens, C]
        qkv = linear(x, f"{name}.qkv")
        q, k, v = jnp.split(qkv, 3, -1)  # of one head
        table = t[f"{name}.relative_position_bias_table"][:, 0]
        side = window
        steps = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(
            -1, 2
        )
        steps = steps[:, None] - steps[None] + side - 1
        logits = (
            q @ k.T / np.sqrt(x.shape[-1]) + table[steps[..., 0] * (2 * side - 1) + steps[..., 1]]
        )
        logits = logits + jnp.where(mask, 0.0, -100.0)
        return linear(jax.nn.softmax(logits) @ v, f"{name}.proj")

    def block(x, name, shifted):  # [H, W, C]
        height, width, _ = x.shape
        shift = window // 2 if shifted and min(height, width) > window else 0
        y = jnp.roll(norm(x, f"{name}.norm1"), (-shift, -shift), (0, 1))
        n = height // window
        mask = authors_mask(height, window, shift) if shift else np.ones((n * n, 1, 1), bool)
        rows = []
        for r in range(n):
            parts = []
            for c in range(n):
                part = y[r * window : (r + 1) * window, c * window : (c + 1) * window]
                found = attention(part.reshape(window**2, -1), f"{name}.attn", mask[r * n + c])
                parts.append(found.reshape(part.shape))
            rows.append(jnp.concatenate(parts, 1))
        x = x + jnp.roll(jnp.concatenate(rows, 0), (shift, shift), (0, 1))
        y = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + linear(0.5 * y * (1 + jax.scipy.special.erf(y / np.sqrt(2))), f"{name}.mlp.fc2")

    def expand(x, name, factor):
        height, width, _ = x.shape
        y = x @ t[f"{name}.expand.weight"].T
        y = y.reshape(height, width, factor, factor, -1).transpose(0, 2, 1, 3, 4)
        return norm(y.reshape(factor * height, factor * width, -1), f"{name}.norm")

    mean, deviation = (jnp.array(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((image + 1) / 2 - mean) / deviation
    n = x.shape[0] // 4
    x = x.reshape(n, 4, n, 4, 3).transpose(0, 2, 4, 1, 3).reshape(n, n, -1)
    kernel = t["patch_embed.proj.weight"].reshape(-1, 48)
    x = norm(x @ kernel.T + t["patch_embed.proj.bias"], "patch_embed.norm")
    skips = []
    for i, depth in enumerate(depths):
        skips.append(x)
        for j in range(depth):
            x = block(x, f"layers.{i}.blocks.{j}", j % 2)
        if i < len(depths) - 1:
            parts = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
            name = f"layers.{i}.downsample"
            x = linear(norm(jnp.concatenate(parts, -1), f"{name}.norm"), f"{name}.reduction")
    x = expand(norm(x, "norm"), "layers_up.0", 2)
    for i in range(1, len(depths)):
        x = linear(jnp.concatenate([x, skips[-1 - i]], -1), f"concat_back_dim.{i}")
        for j in range(depths[-1 - i]):
            x = block(x, f"layers_up.{i}.blocks.{j}", j % 2)
        if i < len(depths) - 1:
            x = expand(x, f"layers_up.{i}.upsample", 2)
    x = expand(norm(x, "norm_up"), "up", 4)
    return x @ t["output.weight"][:, :, 0, 0].T


def test_a_file_of_the_authors_computes_what_theirs_does(tmp_path):
    sizes = {"depths": (2, 2), "width": 8, "window": 2}
    tensors = draw(names_of_swin_unet(classes=2, **sizes))
    path = tmp_path / "swin_unet.npz"
    np.savez(path, **tensors)
    images = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    module = swin_unet.SwinUnet(2, weights=str(path), **sizes)
    network = factory.network(module, images, None)
    params = network.init(jax.random.key(0))
    assert module.rates() == {"encoder": 0.3} and "terms" in network.notice
    wanted = tiny.jit(lambda t, x: forward_by_the_book(t, x, sizes["depths"], 2))(
        tensors, images[0]
    )
    found = tiny.jit(network.apply)(params, images, None)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(np.abs(wanted).max()))
    with pytest.raises(errors.InputError, match="of a network for pictures: use '' for volumes"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))
