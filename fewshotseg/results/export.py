"""A trained model as a folder that predicts without this package: images of any size in, probabilities out.

FOLDER/
  model.stablehlo          for `jax.export`, on CPU, GPU (CUDA) and TPU
  model.onnx               the same for ONNX Runtime, where the extra `onnx` is installed
  model.json               what goes in, what comes out, and where it comes from
  predict_standalone.py    a script that predicts with either
"""

import datetime
import importlib.util
import json
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from fewshotseg import files
from fewshotseg.data import canvas
from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor
from fewshotseg.runs import folder as run_folder

PLATFORMS = ("cpu", "cuda", "tpu")
_SCRIPT = pathlib.Path(__file__).with_name("predict_standalone.py")


def export_model(
    predictor: Predictor,
    output_dir: str | pathlib.Path,
    about: Mapping[str, Any],
    log: Callable[[str], None] = print,
) -> pathlib.Path:
    """Writes the folder that is described above; files of an earlier export there are replaced.

    Args:
      predictor: a trained model.
      output_dir: made if missing.
      about: what model.json says of the model beyond its interface, see `about_runs`.
      log: receives lines for people.

    Returns:
      The folder.

    Raises:
      InputError: the model cannot be traced, sees images in tiles, or the folder is a file or cannot be
        written.
    """
    output_dir = pathlib.Path(output_dir)
    for place in (output_dir, *output_dir.parents):
        if place.is_file():
            raise InputError(
                f"--output={output_dir}: {place} is a file, give a folder for the model."
            )
    if predictor.network is None:
        raise InputError(f"{predictor.source}: there is no network to export in this model.")
    if predictor.tiles:
        raise InputError(
            f"{predictor.source}: this model sees images in tiles, and export is for models that see "
            "whole ones: use --mode=predict."
        )
    (output_dir / "model.json").unlink(missing_ok=True)  # it says that everything is in place
    names = ["model.stablehlo"]
    files.write_bytes(output_dir / names[0], stablehlo(predictor))
    data, reason = _try_onnx(predictor)
    if data:
        names.append("model.onnx")
        files.write_bytes(output_dir / names[-1], data)
    else:
        (output_dir / "model.onnx").unlink(missing_ok=True)
        log(f"No model.onnx: {reason}")
    files.write_bytes(output_dir / _SCRIPT.name, _SCRIPT.read_bytes())
    files.write_json(output_dir / "model.json", {**interface(predictor), "files": names, **about})
    return output_dir


def _try_onnx(predictor: Predictor) -> tuple[bytes, str]:
    """The file, or no bytes and why."""
    if importlib.util.find_spec("onnx") is None:
        return b"", "pip install 'fewshotseg[onnx]' and export again, if you need it."
    from fewshotseg.results import onnx_export  # slow to import

    try:
        return onnx_export.onnx_file(predictor), ""
    except InputError as error:
        return b"", str(error)


def stablehlo(predictor: Predictor) -> bytes:
    """The program that `jax.export.deserialize` reads, with the weights in it.

    It maps uint8 `[H, W, 3]`, any H and W, to float32 `[H, W, K]`. It can be read by JAX for at least
    six months after the version that wrote it; the checkpoint is what lasts.
    """
    shape = jax_export.symbolic_shape("height, width, 3")
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    function = jax.jit(any_size(predictor))
    return bytes(jax_export.export(function, platforms=PLATFORMS)(image).serialize())


def any_size(predictor: Predictor) -> Callable[[jax.Array], jax.Array]:
    """uint8 `[H, W, 3]` to float32 `[H, W, K]`, traceable: what `probabilities_of` does with one image.

    A grey image has three equal channels.
    """
    size = canvas.as_size(predictor.image_size)

    def segment(image):
        pixels = image.astype(jnp.float32)
        if predictor.channels == 1:
            pixels = pixels @ canvas.LUMA[:, None]
        squashed = _resize(pixels, size)
        inputs = jnp.clip(squashed / 127.5 - 1.0, -1.0, 1.0)[None]
        return jnp.clip(_resize(predictor.network(inputs)[0], image.shape[:2]), 0.0, 1.0)

    return segment


def _resize(pixels: jax.Array, size) -> jax.Array:
    """`[H, W, C]` to `[*size, C]`, as `canvas`: the width first."""
    exact = jax.lax.Precision.HIGHEST
    across = resize_weights(pixels.shape[1], size[1])
    pixels = jnp.einsum("vw,hwc->hvc", across, pixels, precision=exact)
    return jnp.einsum(
        "uh,hvc->uvc", resize_weights(pixels.shape[0], size[0]), pixels, precision=exact
    )


def resize_weights(old, new) -> jax.Array:
    """Weights `[new, old]` of the triangle filter with half-pixel centres: rows that add up to 1.

    Linear interpolation where an axis grows; where it shrinks, the triangle is as wide as two new pixels.
    Distances are compared as whole numbers, so that there is no rounding before the division.

    Args:
      old: number of pixels, an int or a dimension of symbolic size.
      new: likewise.
    """
    centres, pixels = 2 * jnp.arange(new) + 1, 2 * jnp.arange(old) + 1
    distance = jnp.abs(pixels[None, :] * new - centres[:, None] * old)
    reach = 2 * jnp.maximum(jnp.asarray(old), jnp.asarray(new))
    weights = jnp.maximum(1.0 - distance.astype(jnp.float32) / reach.astype(jnp.float32), 0.0)
    return weights / weights.sum(1, keepdims=True)


def interface(predictor: Predictor) -> dict[str, Any]:
    """What goes into the exported model and what comes out, for model.json."""
    several = len(predictor.class_names) > 1
    outputs = (
        "of every class, background first; the mask is the most probable class"
        if several
        else "of the foreground; the mask is where it is at least the threshold"
    )
    return {
        "input": "uint8 [height, width, 3], RGB, any size, upright; a grey image three times",
        "output": f"float32 [height, width, {len(predictor.class_names) + several}], probability {outputs}",
        "class_names": list(predictor.class_names),
        "mask_values": list(predictor.mask_values),
        "threshold": predictor.threshold,
        "temperature": predictor.temperature,
        "network_size": list(canvas.as_size(predictor.image_size)),
        "network_channels": predictor.channels,
        "purpose": "A research tool: not a medical device, not for diagnosis.",
        "stablehlo_promise": "readable by JAX for six months after the export; keep the checkpoint",
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": run_folder.environment()["versions"],
        "python": platform.python_version(),
    }


def about_runs(predictor: Predictor, roots: Sequence[str | pathlib.Path]) -> dict[str, Any]:
    """What model.json says of the training: numbers and names of settings, never of images or folders.

    Args:
      predictor: the model.
      roots: folders of the runs, or of methods in them, that it comes from.
    """
    source, found = predictor.source, []
    for path in map(pathlib.Path, roots):
        root = path.parent if (path / "checkpoints").is_dir() else path
        source = source.replace(str(root), root.resolve().name)  # no path of this machine leaves it
        found.append(_about_run(root, predictor))
    own = "No foreign weights: those of your training, under the terms of your data."
    return {
        "model": source,
        "licence_of_weights": predictor.notice or own,
        "training": found,
    }


def _about_run(root, predictor):
    config = run_folder.read_config(root)
    try:
        splits = json.loads((root / "splits.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        splits = {}
    return {
        "experiment": config["name"],
        "data": config["data"]["source"],
        "images": {role: len(splits[role]) for role in ("train", "validation") if role in splits},
        "steps": config["train"]["num_steps"],
        "segmenter": predictor.segmenter,
        "seed": config["seed"],
    }
