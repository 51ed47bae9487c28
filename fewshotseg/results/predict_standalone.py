"""Segments pictures with the model in this folder; needs NumPy, Pillow, and JAX or ONNX Runtime.

  python predict_standalone.py PICTURE [PICTURE ...]

For every picture it writes PICTURE.mask.png (the values of the training masks, 0 and 255 for one class) and
prints the areas in pixels.
A research tool: not a medical device, not for diagnosis.
"""

import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent


def load_model():
    """A function from uint8 `[H, W, 3]` to float32 `[H, W, K]` in [0, 1]."""
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    if onnxruntime and (FOLDER / "model.onnx").exists():
        session = onnxruntime.InferenceSession(FOLDER / "model.onnx")
        return lambda image: session.run(None, {"image": image})[0]
    import jax.export

    exported = jax.export.deserialize(bytearray((FOLDER / "model.stablehlo").read_bytes()))
    return lambda image: np.asarray(jax.jit(exported.call)(image))


def read_picture(path):
    """uint8 `[H, W, 3]`, upright; more than 8 bits of grey are stretched, as for the training."""
    from PIL import Image, ImageOps

    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode[0] not in "IF":
            return np.asarray(picture.convert("RGB"))
        grey = np.asarray(picture).astype(float)
    low, high = grey.min(), grey.max()
    if not np.isfinite(high - low):
        sys.exit(f"{path}: holds NaN or infinite values: replace them and save it again.")
    if not (low >= 0 and 1 < high <= 255 and (grey == np.floor(grey)).all()):
        grey = (grey - low) * (255 / max(high - low, 1e-12))
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, -1)


def to_mask(probabilities, threshold):
    """uint8 `[H, W]` of class ids, 0 is background."""
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= threshold).astype(np.uint8)
    return probabilities.argmax(-1).astype(np.uint8)


if __name__ == "__main__":
    from PIL import Image

    about, model = json.loads((FOLDER / "model.json").read_text("utf-8")), load_model()
    names = about["class_names"]
    for path in sys.argv[1:]:
        mask = to_mask(model(read_picture(path)), about["threshold"])
        values = about["mask_values"]
        table = np.array(values, np.uint8 if max(values) <= 255 else np.uint16)
        Image.fromarray(table[mask]).save(f"{path}.mask.png")
        areas = [f"{name} {(mask == i).sum()} px" for i, name in enumerate(names, start=1)]
        print(f"{path}: {', '.join(areas)}")
