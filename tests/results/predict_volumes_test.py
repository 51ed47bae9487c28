"""Volumes in, label maps out, with a network whose answer is known, and a reader of another library."""

import csv
import dataclasses
import json
import os
import warnings

import nibabel
import numpy as np
import pytest
import volumes
from skimage import measure

from configs import default
from fewshotseg.data import volume_files
from fewshotseg.data.sources.volumes import VolumeSource
from fewshotseg.data.volume_files import GreyValues
from fewshotseg.errors import InputError
from fewshotseg.results.evaluate import evaluate
from fewshotseg.results.flips import with_flips
from fewshotseg.results.predict_volumes import predict_volumes
from fewshotseg.results.predictor import Predictor, create_predictor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG types
    import SimpleITK

AFFINE = np.array([[0, 0, 2.5, -30], [-0.7, 0.05, 0, 12], [0.05, 0.7, 0, 5], [0, 0, 0, 1.0]])


def make_predictor(size=(16, 16, 16), function=None):
    """Bright is foreground, half of the window and above."""

    def bright(images):
        return (images + 1) / 2

    return Predictor(
        function or bright, size, 1, ("ball",), 0.5, "test", grey_values=GreyValues((0.0, 100.0))
    )


def make_box():
    """Stored [X, Y, Z]; a bright box that is symmetric along no axis."""
    image = np.zeros((16, 16, 16), np.int16)
    image[2:7, 4:6, 9:15] = 100
    return image


def predict(source, target, predictor=None, **options):
    said = []
    rows = predict_volumes(
        predictor or make_predictor(), source, target, log=said.append, **options
    )
    return rows, said


def test_masks_lie_on_their_images_for_another_reader(tmp_path):
    path = volumes.save(tmp_path / "in" / "sub" / "a.nii.gz", make_box(), AFFINE)
    rows, said = predict(tmp_path / "in", tmp_path / "out", probabilities=True)
    written = tmp_path / "out" / "masks" / "sub" / "a.nii.gz"
    first, second = (SimpleITK.ReadImage(str(p)) for p in (path, written))
    for get in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(second, get)(), getattr(first, get)(), atol=1e-6)
    a, b = map(SimpleITK.GetArrayFromImage, (first, second))
    np.testing.assert_array_equal(b, a // 100)
    np.testing.assert_allclose(nibabel.load(written).affine, AFFINE, atol=1e-6)
    (row,) = rows
    voxel = abs(np.linalg.det(AFFINE[:3, :3]))
    assert row["voxels"] == 60 and row["volume_ml"] == pytest.approx(60 * voxel / 1000, abs=1e-6)
    turned = volume_files.read_volume(path)
    mesh = measure.marching_cubes(np.pad(turned.values, 1), 50.0, spacing=turned.spacing)[:2]
    assert row["surface_mm2"] == pytest.approx(measure.mesh_surface_area(*mesh), rel=1e-4)
    assert row["mask"] == "masks/sub/a.nii.gz" and "1 of 1 volumes" in said[-1]
    probabilities = np.load(tmp_path / "out" / "probabilities" / "sub" / "a.nii.gz.npy")
    np.testing.assert_allclose(probabilities[..., 0], make_box() / 100, atol=1e-6)
    assert (tmp_path / "out" / "overlays" / "sub" / "a.nii.gz.png").is_file()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["network_size"] == [16] * 3


def test_sizes_and_what_cannot_be_read(tmp_path):
    volumes.save(tmp_path / "in" / "a.nii", np.full((5, 9, 7), 80, np.float32))
    volumes.save(tmp_path / "in" / "b.nii", np.zeros((5, 9, 7, 2), np.float32))
    rows, said = predict(tmp_path / "in", tmp_path / "out", overlays=False)
    assert rows[0]["voxels"] == 5 * 9 * 7 and rows[0]["share_of_image"] == 1
    assert (rows[0]["depth"], rows[0]["height"], rows[0]["width"]) == (7, 9, 5)
    assert "4 axes" in rows[1]["error"] and "4 axes" in said[0]
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a.nii", "b.nii"]
    again, _ = predict(tmp_path / "in" / "a.nii", tmp_path / "out", overlays=False)
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["b.nii", "a.nii"]
    with pytest.raises(InputError, match="output folder is in the input folder"):
        predict(tmp_path / "in", tmp_path / "in" / "out")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="no .nii.*volumes, not pictures"):
        predict(tmp_path / "pictures", tmp_path / "out2")


def test_of_three_axes_mirrored_there_are_eight_images():
    seen = []

    def corner(images):
        seen.append(images)
        return images

    image = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 1)).astype(np.float32)
    plain = dataclasses.replace(make_predictor((4, 4, 4), corner), flip_axes=(-1, -2, -3))
    flipped = with_flips(plain)
    np.testing.assert_allclose(flipped.predict_probabilities(image), image, atol=1e-6)
    assert len({s.tobytes() for s in seen}) == 8 and "8 mirror images" in flipped.source


def test_distances_are_in_mm(tmp_path):
    """A prediction that is one slice off in 2 mm steps: HD95 is 2, in mm."""
    for name in "abcd":
        volumes.save(tmp_path / "images" / f"{name}.nii", make_box())
        label = np.roll(make_box() // 100, 1, axis=2).astype(np.uint8)  # 2 mm
        volumes.save(tmp_path / "labels" / f"{name}.nii", label)
    source = VolumeSource(str(tmp_path), class_names=("ball",))
    summary = evaluate(make_predictor(), source, ["a", "b"], tmp_path / "out", batch_size=2)
    assert summary["mean"]["hd95"]["mean"] == 2.0 and summary["unit_of_hd95"] == "mm"
    assert summary["mean"]["dice"]["mean"] == pytest.approx(5 / 6)
    row = json.loads((tmp_path / "out" / "cases.json").read_text())[0]
    assert (row["depth"], row["height"], row["width"]) == (16, 16, 16)
    assert len(list((tmp_path / "out" / "examples").glob("*.png"))) == len(summary["examples"])
    # The tolerance counts in mm too: 1 % of the diagonal is 0.4 mm, 6 % are 2.6 mm.
    loose = evaluate(make_predictor(), source, ["a"], tmp_path / "b", nsd_tolerance=0.06)
    assert loose["mean"]["nsd"]["mean"] == 1.0 > summary["mean"]["nsd"]["mean"]
    for nsd_mm, whole in ((1.9, False), (2.0, True)):
        in_mm = evaluate(make_predictor(), source, ["a"], tmp_path / "b", nsd_mm=nsd_mm)
        assert in_mm["nsd_tolerance"] == f"{nsd_mm:g} mm"
        assert (in_mm["mean"]["nsd"]["mean"] == 1.0) == whole


def test_one_channel_of_a_case_is_segmented_and_numbers_of_cases_are_none(tmp_path):
    def saved(name, affine=None):
        volumes.save(tmp_path / "in" / f"{name}.nii.gz", make_box(), affine)

    moved = np.eye(4)
    moved[0, 3] = 7.0
    for name in (
        "c_0000",
        "c_0001",
        "sub/c_0000",
        "sub/c_0001",
        "plain",
        ".hidden/x",
        "alone_0001",
    ):
        saved(name)
    for name, affine in (("other_0000", None), ("other_0001", moved)):  # another patient
        saved(name, affine)
    for number in range(1, 4):
        saved(f"patient_{number:04d}")
    cases = {"plain", "alone_0001", "other_0000", "other_0001"} | {
        f"patient_000{i}" for i in (1, 2, 3)
    }
    for channel in (0, 1):
        model = dataclasses.replace(make_predictor(), channel=channel)
        rows, said = predict(tmp_path / "in", tmp_path / f"out{channel}", model, overlays=False)
        of_channel = {f"c_000{channel}", f"sub/c_000{channel}"}
        assert {row["file"] for row in rows} == {f"{n}.nii.gz" for n in cases | of_channel}
        assert said[0].startswith(
            f"2 file(s) are other channels of cases whose channel 000{channel}"
        )
    rows, _ = predict(tmp_path / "in" / "c_0001.nii.gz", tmp_path / "out", overlays=False)
    assert [row["file"] for row in rows] == ["c_0001.nii.gz"]


def test_the_channel_of_a_model_is_that_of_its_run():
    config = json.loads(default.get_config().to_json())
    config["data"]["volumes"]["channel"] = 3
    assert create_predictor(config, {}, ("ball",), "test").channel == 3


def test_a_slice_or_a_picture_is_no_input(tmp_path):
    (tmp_path / "1.dcm").write_bytes(b"")
    (tmp_path / "c0.PNG").write_bytes(b"")
    with pytest.raises(InputError, match="1.dcm: is one slice .*: give the folder of the series"):
        predict(tmp_path / "1.dcm", tmp_path / "out")
    with pytest.raises(InputError, match="c0.PNG: the model segments volumes, not pictures"):
        predict(tmp_path / "c0.PNG", tmp_path / "out")


def test_links_odd_names_and_files_that_have_become_unreadable(tmp_path):
    folder = tmp_path / "in"
    volumes.save(tmp_path / "elsewhere" / "a.nii", make_box())
    volumes.save(folder / os.fsdecode(b"\xfc.nii"), make_box())
    (folder / "site").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    rows, _ = predict(folder, tmp_path / "out", probabilities=True)
    errors = {row["file"]: row["error"] for row in rows}
    assert errors["site/a.nii"] == "" and len(errors) == 2
    assert errors["\\xfc.nii"].endswith("the name is not UTF-8: rename it.")
    written = [tmp_path / "out" / name for name in (
        "masks/site/a.nii", "overlays/site/a.nii.png", "probabilities/site/a.nii.npy"
    )]  # fmt: skip
    assert all(path.is_file() for path in written)
    (tmp_path / "elsewhere" / "a.nii").write_bytes(b"")
    predict(folder, tmp_path / "out")
    assert not any(path.exists() for path in written)
