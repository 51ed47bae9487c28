"""Small volumes as files: a bright ball in noise, in the layouts that are read."""

import json

import nibabel
import numpy as np

NAMES = ("ball", "core")


def make_ball(seed, shape=(12, 14, 10), dtype=np.float32):
    """An image `[X, Y, Z]` and its label map: 1 in a ball off the centre, 2 in its upper half."""
    rng = np.random.default_rng(seed)
    centre = [n / 2 + rng.uniform(-2, 2) for n in shape]
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    inside = np.linalg.norm(grid - centre, axis=-1) < min(shape) / 3.5
    label = inside.astype(np.uint8)
    label[inside & (grid[..., 2] > centre[2])] = 2
    image = rng.normal(200.0, 40.0, shape) + 400.0 * label
    return image.astype(dtype), label


def save(path, array, affine=None):
    """Writes a NIfTI file; by default 1 x 1.5 x 2 mm in RAS order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_decathlon(root, number=5, **options):
    """A folder as the Medical Segmentation Decathlon has it; returns its path."""
    training = []
    for index in range(number):
        image, label = make_ball(index, **options)
        names = {kind: f"./{kind}sTr/ball_{index:03d}.nii.gz" for kind in ("image", "label")}
        save(root / names["image"], image)
        save(root / names["label"], label)
        training.append(names)
    save(root / "imagesTr" / "._ball_000.nii.gz", image)  # as some archives have them
    about = {"labels": {"0": "background", "1": NAMES[0], "2": NAMES[1]}, "training": training}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def write_nnunet(root, number=5):
    """A folder as nnU-Net v2 has it, with a second channel that is not read by default."""
    for index in range(number):
        image, label = make_ball(index)
        save(root / "imagesTr" / f"ball_{index:03d}_0000.nii.gz", image)
        save(root / "imagesTr" / f"ball_{index:03d}_0001.nii.gz", -image)
        save(root / "labelsTr" / f"ball_{index:03d}.nii.gz", label)
    about = {"labels": {"background": 0, NAMES[0]: 1, NAMES[1]: 2}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about))
    return root
