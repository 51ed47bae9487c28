"""Folders of volumes in their layouts, and what is wrong with them."""

import json
import os
import unicodedata

import nibabel
import numpy as np
import pytest
import volumes as files

from fewshotseg.data.sources import volume_layouts
from fewshotseg.data.sources.volumes import VolumeSource
from fewshotseg.errors import InputError
from fewshotseg.labels import IGNORED, Labels


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory):
    return files.write_decathlon(tmp_path_factory.mktemp("decathlon"))


def test_the_decathlon(decathlon):
    source = VolumeSource(str(decathlon))
    assert source.class_names == files.NAMES and len(source.ids) == 5
    case = source.load("ball_001")
    image, label = files.make_ball(1)
    assert case.image.shape == (10, 14, 12, 1) and case.image.dtype == np.float32
    assert case.image.min() == 0 and case.image.max() == 255
    np.testing.assert_array_equal(case.mask, label.transpose(2, 1, 0)[:, ::-1, ::-1])
    assert case.spacing == (2.0, 1.5, 1.0)
    # Voxel (0, 0, 0) of the canonical array is the patient's right, front, foot corner.
    np.testing.assert_array_equal(case.affine @ [0, 0, 0, 1], [11, 19.5, 0, 1])


def test_nnunet_names_and_plain_folders_give_the_same_cases(decathlon, tmp_path):
    reference = VolumeSource(str(decathlon)).load("ball_002")
    nnunet = VolumeSource(str(files.write_nnunet(tmp_path)))
    plain = VolumeSource(
        images_dir=str(decathlon / "imagesTr"), labels_dir=str(decathlon / "labelsTr"),
        class_names=files.NAMES,
    )  # fmt: skip
    for source in (nnunet, plain):
        assert source.class_names == files.NAMES and len(source.ids) == 5
        np.testing.assert_array_equal(source.load("ball_002").image, reference.image)
        np.testing.assert_array_equal(source.load("ball_002").mask, reference.mask)
    second = VolumeSource(str(tmp_path), channel=1).load("ball_002")
    np.testing.assert_allclose(second.image, 255 - reference.image, atol=1e-3)


def test_labels_on_an_affine_that_is_nearly_that_of_the_image(tmp_path):
    """Around 45 degrees, rounding may put two files of one grid on different orders."""
    image, label = files.make_ball(0)
    for kind, array, turn in (("images", image, 44.9999), ("labels", label, 45.0001)):
        angle = np.deg2rad(turn)
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        for name in "abcd":
            files.save(tmp_path / kind / f"{name}.nii.gz", array, affine)
    case = VolumeSource(str(tmp_path), class_names=files.NAMES).load("a")
    assert case.mask.shape == case.image.shape[:-1]
    assert case.image[case.mask > 0].min() > np.median(case.image)


def test_groups_and_lists(decathlon, tmp_path):
    (tmp_path / "few.txt").write_text("ball_000\nball_001\nball_002\nball_003\n")
    source = VolumeSource(
        str(decathlon), include=str(tmp_path / "few.txt"), group_pattern=r"_0+(\d)"
    )
    assert source.ids == tuple(f"ball_{i:03d}" for i in range(4))
    assert source.load("ball_003").group == "3"
    with pytest.raises(InputError, match="matches none"):
        VolumeSource(str(decathlon), group_pattern="patient")


def test_faults_are_one_sentence_and_all_are_kept(tmp_path):
    root = files.write_decathlon(tmp_path)
    image, label = files.make_ball(0)
    files.save(root / "labelsTr" / "ball_000.nii.gz", label[:-1])
    files.save(root / "imagesTr" / "ball_001.nii.gz", np.stack([image] * 3, -1))
    (root / "labelsTr" / "ball_002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no such file.*Files with faults: 3; --mode=check"):
        VolumeSource(str(root))
    faults = VolumeSource(str(root), strict=False).faults
    assert "voxels" in faults["ball_000"] and "4 axes" in faults["ball_001"]
    assert "is listed in dataset.json" in faults["ball_002"]
    with pytest.raises(InputError, match="voxels"):
        VolumeSource(str(root), strict=False).load("ball_000")


def test_unpaired_files(tmp_path):
    image, label = files.make_ball(0)
    for name in ("a", "b_0000"):
        files.save(tmp_path / "images" / f"{name}.nii", image)
    for name in ("b", "c"):
        files.save(tmp_path / "labels" / f"{name}.nii", label)
    found = volume_layouts.read_folder(tmp_path)
    assert list(found.images) == ["b"] and "no labels" in found.faults["a"]
    assert "there is no image c or c_0000" in found.faults["c"]


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "whole": [1, 2]}, {"background": 0, "a": 1, "b": 1}, {"0": "background"},
     {"background": 0, "ignore": 1}, {"lesion": 1}],
)  # fmt: skip
def test_labels_that_cannot_be_read_so_far(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError, match="dataset.json: the labels are"):
        volume_layouts.read_folder(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="data.volumes.folder is empty"):
        VolumeSource()
    with pytest.raises(InputError, match="no such folder"):
        VolumeSource(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="neither a dataset.json.*images_dir"):
        VolumeSource(str(tmp_path))
    image, label = files.make_ball(0)
    files.save(tmp_path / "images" / "a.nii", image)
    files.save(tmp_path / "labels" / "a.nii", label)
    with pytest.raises(InputError, match="no dataset.json names the classes"):
        VolumeSource(str(tmp_path))
    with pytest.raises(InputError, match="1 labelled volumes found, but at least 4"):
        VolumeSource(str(tmp_path), class_names=files.NAMES)


def test_values_with_gaps_and_an_ignore_label(tmp_path):
    """Of dataset.json, or of the configuration where none names them."""
    root = files.write_nnunet(tmp_path / "data")
    for path in (root / "labelsTr").iterdir():
        label = np.asarray(nibabel.load(path).dataobj)
        files.save(path, np.array([0, 4, 9], np.uint8)[label])
    about = {"labels": {"background": 0, "ball": 4, "ignore": 6, "core": 9}}
    (root / "dataset.json").write_text(json.dumps(about))
    source = VolumeSource(str(root))
    assert source.class_names == ("ball", "core") and source.labels == Labels((0, 4, 9), 6)
    assert set(np.unique(source.load("ball_000").mask)) == {0, 1, 2}
    renamed = VolumeSource(str(root), class_names=("B", "C"))
    assert renamed.labels == source.labels
    fewer = VolumeSource(str(root), class_names=("B",), class_ids=(0, 4), ignore_id=9)
    assert set(np.unique(fewer.load("ball_000").mask)) == {0, 1, IGNORED}
    with pytest.raises(
        InputError, match=r"hold the values 0, 4, 9, but the classes have the ids 0..1"
    ):
        VolumeSource(str(root), class_names=("B",)).load("ball_000")
    with pytest.raises(
        InputError, match=r"data.volumes.class_ids is \(0, 4\): give 3 different numbers"
    ):
        VolumeSource(str(root), class_ids=(0, 4))


def test_files_of_one_name_are_a_fault_that_names_both(tmp_path):
    image, label = files.make_ball(0)
    root = files.write_nnunet(tmp_path / "nnunet")
    files.save(root / "labelsTr" / "ball_000.nii", label)
    files.save(root / "imagesTr" / "ball_001_0000.nii", image)
    with pytest.raises(
        InputError, match=r"ball_001_0000.nii.gz: has the same name as .*_0000.nii,"
    ):
        VolumeSource(str(root))
    found = VolumeSource(str(root), strict=False)
    assert set(found.faults) == {"ball_000", "ball_001"} and len(found.ids) == 5
    assert (
        "ball_000.nii.gz" in found.faults["ball_000"]
        and "ball_000.nii," in found.faults["ball_000"]
    )
    (tmp_path / "two.txt").write_text("ball_000\nball_002\n")
    kept = VolumeSource(str(root), include=str(tmp_path / "two.txt"), strict=False)
    assert set(kept.faults) == {"ball_000"}
    training = []
    for site in "AB":
        for i in range(3):
            for kind, array in (("img", image), ("lab", label)):
                files.save(tmp_path / "msd" / site / kind / f"{i:03d}.nii.gz", array)
            training.append(
                {"image": f"{site}/img/{i:03d}.nii.gz", "label": f"{site}/lab/{i:03d}.nii.gz"}
            )
    about = {"labels": {"0": "background", "1": "ball", "2": "core"}, "training": training}
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(
        InputError, match=r"B/img/000.nii.gz: has the same name as .*A/img/000.nii.gz"
    ):
        VolumeSource(str(tmp_path / "msd"), minimum_cases=1)


def test_a_group_pattern_that_matches_some_volumes_is_told(decathlon):
    (note,) = VolumeSource(str(decathlon), group_pattern="ball_00[0-3]").notes
    assert "data.volumes.group_pattern" in note and "1 of the 5 ids" in note and "ball_004" in note
    assert VolumeSource(str(decathlon), group_pattern="ball").notes == ()


def test_names_of_volumes_that_are_not_utf8_or_written_by_macos(tmp_path):
    root = files.write_nnunet(tmp_path)
    for kind, old, new in (
        ("imagesTr", "ball_000_0000", "Müller_0000"),
        ("labelsTr", "ball_000", unicodedata.normalize("NFD", "Müller")),
        ("imagesTr", "ball_001_0000", os.fsdecode(b"\xfc_0000")),
        ("labelsTr", "ball_001", os.fsdecode(b"\xfc")),
    ):
        (root / kind / f"{old}.nii.gz").rename(root / kind / f"{new}.nii.gz")
    for index in range(2):
        (root / "imagesTr" / f"ball_00{index}_0001.nii.gz").unlink()
    found = VolumeSource(str(root), strict=False)
    assert "Müller" in found.ids and len(found.ids) == 4
    assert {fault.rpartition("/")[2] for fault in found.faults.values()} == {
        "\\xfc_0000.nii.gz: the name is not UTF-8: rename it.",
        "\\xfc.nii.gz: the name is not UTF-8: rename it.",
    }
