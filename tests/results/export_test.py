"""What is exported predicts as what was trained: on odd sizes, by itself, and from another folder."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import export as jax_export
from PIL import Image

from fewshotseg.data import image_files
from fewshotseg.errors import InputError
from fewshotseg.results import export, onnx_export, predict_standalone
from fewshotseg.results.predictor import (
    Predictor,
    create_network,
    create_predictor,
    probabilities_of,
    segment_images,
)

SIZES = ((45, 61), (7, 130), (97, 20))


@pytest.mark.parametrize(
    "old, new", [(45, 32), (32, 45), (7, 32), (130, 32), (32, 32), (1, 5), (5, 1)]
)
def test_resize_weights_are_those_of_pillow(old, new):
    pixels = np.random.default_rng(old).uniform(0, 255, (old, 3)).astype(np.float32)
    wanted = Image.fromarray(pixels).resize((3, new), Image.Resampling.BILINEAR)
    found = np.asarray(export.resize_weights(old, new))
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(found @ pixels, np.asarray(wanted), atol=1e-3)


@pytest.fixture(
    scope="module", params=[(3, 1), (1, 1), (3, 3)], ids="{0[0]}_channels_{0[1]}_classes".format
)
def predictor(request):
    """A tiny model, with logits large enough for probabilities all over [0, 1]."""
    channels, num_classes = request.param
    fields = {"width": 4, "num_levels": 2}
    config = {
        "data": {"image_size": (32, 24), "channels": channels},
        "segmenter": {"name": "unet", "unet": fields},
        "evaluate": {"threshold": 0.4},
    }
    names = [f"class {i}" for i in range(num_classes)]
    weights = create_network(config, num_classes + 1).init(jax.random.key(0))
    weights["logits"]["kernel"] = 4.0 * weights["logits"]["kernel"]
    return create_predictor(config, weights, names, "test")


OTHERS = {
    "deeplab": {"width": 4, "depths": (1, 1, 1, 1), "head_width": 8},
    "swin_unet": {"width": 8, "depths": (1, 2), "window": 3},
}


def _pictures(numbers=0):
    draw = np.random.default_rng(numbers)
    for size in SIZES:
        coarse = draw.integers(0, 256, (4, 4, 3), np.uint8)
        yield np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def test_stablehlo_predicts_as_the_model(predictor, tmp_path):
    exported = jax_export.deserialize(bytearray(export.stablehlo(predictor)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    call = jax.jit(exported.call)
    for image in _pictures():
        (wanted,) = probabilities_of(predictor, [image], ["a"], 1)
        found = np.asarray(call(image))
        assert found.shape == (*image.shape[:2], wanted.shape[-1]) and np.ptp(wanted) > 0.1
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        grey = np.ascontiguousarray(image[..., :1])
        (wanted,) = probabilities_of(predictor, [grey], ["a"], 1)
        np.testing.assert_allclose(call(np.repeat(grey, 3, -1)), wanted, atol=1e-4)


def test_onnx_predicts_as_the_model(predictor):
    session = onnxruntime.InferenceSession(onnx_export.onnx_file(predictor))
    for image in _pictures():
        (wanted,) = probabilities_of(predictor, [image], ["a"], 1)
        (found,) = session.run(None, {"image": image})
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_onnx_predicts_as_other_segmenters_do(name):
    """Pictures of odd sizes, through a network of an odd size."""
    config = {
        "data": {"image_size": (27, 34), "channels": 3},
        "segmenter": {"name": name, name: OTHERS[name]},
        "evaluate": {"threshold": 0.5},
    }
    weights = create_network(config, 3).init(jax.random.key(0))
    weights["logits"]["kernel"] = 10.0 * weights["logits"]["kernel"]
    predictor = create_predictor(config, weights, ("a", "b"), "test")
    session = onnxruntime.InferenceSession(onnx_export.onnx_file(predictor))
    for image in _pictures():
        (wanted,) = probabilities_of(predictor, [image], ["a"], 1)
        (found,) = session.run(None, {"image": image})
        assert np.ptp(wanted) > 0.1
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("runs_on", ["onnx", "stablehlo"])
def test_the_folder_predicts_by_itself(predictor, runs_on, tmp_path, monkeypatch):
    """In another process, from another folder, without this package."""
    lines = []
    if runs_on == "stablehlo":
        monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    folder = export.export_model(predictor, tmp_path / "out", {"model": "ours"}, lines.append)
    assert (folder / "model.onnx").exists() == (not lines) == (runs_on == "onnx")
    about = json.loads((folder / "model.json").read_text())
    assert about["class_names"] == list(predictor.class_names) and about["threshold"] == 0.4
    assert set(about["files"]) == {p.name for p in folder.iterdir() if "model." in p.name} - {
        "model.json"
    }
    image = next(_pictures())
    Image.fromarray(image).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, folder / "predict_standalone.py", "a.png"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wanted,) = segment_images(predictor, [image], ["a"], 1)
    with Image.open(tmp_path / "a.png.mask.png") as mask:
        scale = 255 if len(predictor.class_names) == 1 else 1
        np.testing.assert_array_equal(np.asarray(mask), scale * wanted)
    areas = [f"{n} {(wanted == i).sum()} px" for i, n in enumerate(predictor.class_names, 1)]
    assert done.stdout == f"a.png: {', '.join(areas)}\n"


def test_more_than_eight_bits_are_read_as_in_the_package(tmp_path):
    ramp = np.arange(12).reshape(3, 4)
    for name, values in {
        "deep.png": (ramp * 300).astype(np.uint16),
        "shallow.png": ramp.astype(np.uint16),
        "wide.tif": ramp.astype(np.int32) * 9999 - 70000,
        "float.tif": ramp.astype(np.float32) / 11,
        "plain.png": ramp.astype(np.uint8),
    }.items():
        Image.fromarray(values).save(tmp_path / name)
        read, _ = image_files.read_image(tmp_path / name)
        found = predict_standalone.read_picture(tmp_path / name)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.repeat(read, 3, axis=-1), name)
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(SystemExit, match=r"nan.tif: holds NaN"):
        predict_standalone.read_picture(tmp_path / "nan.tif")


def test_without_a_translation_there_is_still_the_rest(tmp_path):
    predictor = Predictor(
        None, 8, 3, ("lesion",), 0.5, "test", network=lambda x: jnp.sort(x, 1)[..., :1]
    )
    lines = []
    (tmp_path / "model.onnx").write_bytes(b"of an earlier export")
    export.export_model(predictor, tmp_path, {}, lines.append)
    assert json.loads((tmp_path / "model.json").read_text())["files"] == ["model.stablehlo"]
    assert not (tmp_path / "model.onnx").exists() and "'sort', which is not" in lines[0]


def test_a_model_without_a_network_is_refused(predictor, tmp_path):
    with pytest.raises(InputError, match="no network to export"):
        export.export_model(dataclasses.replace(predictor, network=None), tmp_path, {})


def test_a_file_is_no_folder_for_a_model(predictor, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file, give a folder"):
        export.export_model(predictor, tmp_path / "out" / "model", {})
    assert (tmp_path / "out").read_text() == "mine"
