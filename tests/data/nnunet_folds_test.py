"""nnU-Net's list of folds, in and out, for pictures and volumes."""

import json

import numpy as np
import pytest
import volumes
from PIL import Image

from fewshotseg.data import cases, nnunet_folds, split_files
from fewshotseg.data.sources.folder import FolderSource
from fewshotseg.data.sources.volumes import VolumeSource
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """As nnU-Net has pictures: the images' names end with a channel, and so do their ids here."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        rng = np.random.default_rng(i)
        for kind, name in (("imagesTr", f"c{i}_0000"), ("labelsTr", f"c{i}")):
            (root / kind).mkdir(exist_ok=True)
            pixels = rng.integers(0, 255, (20, 20), np.uint8)
            mask = np.zeros((20, 20), np.uint8)
            mask[4:9, 3 : 9 + i] = 1
            Image.fromarray(pixels if kind == "imagesTr" else mask).save(
                root / kind / f"{name}.png"
            )
    return FolderSource(str(root / "imagesTr"), str(root / "labelsTr"))


def folds_of(names):
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    return [{"train": b, "val": a} for a, b in (halves, halves[::-1])]


def test_a_fold_is_what_is_drawn_from_and_what_is_tested_on(pictures, tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(folds_of([f"c{i}" for i in range(8)])))
    draw = {"num_train": 2, "num_validation": 1, "seed": 0, "split_file": str(path)}
    for fold, tested in ((0, "0123"), (1, "4567")):
        split = cases.create_split(Survey(pictures), fold=fold, **draw)
        assert set(split.test) == {f"c{i}_0000" for i in tested}
        assert len(split.train) == 2 and len(split.validation) == 1
        assert not {*split.train, *split.validation} & {*split.test}
    all_of_it = cases.create_split(Survey(pictures), **draw | {"num_train": 0, "num_validation": 0})
    assert len(all_of_it.train) == 3 and len(all_of_it.validation) == 1
    draw |= {"num_train": 0, "num_validation": 0}
    all_train = cases.create_split(Survey(pictures), validate="none", **draw)
    assert set(all_train.train) == {*all_of_it.train, *all_of_it.validation}
    assert all_train.validation == () and all_train.test == all_of_it.test
    with pytest.raises(InputError, match="data.fold is 2, but .*splits_final.json has 2 folds"):
        cases.create_split(Survey(pictures), fold=2, **draw)


def test_what_is_written_is_read_as_the_same_cases(pictures, tmp_path):
    split = cases.create_split(Survey(pictures), num_train=2, num_validation=2, seed=1)
    path = tmp_path / "splits_final.json"
    nnunet_folds.write(path, split)
    (fold,) = json.loads(path.read_text())
    assert all("_0000" not in name for name in fold["train"] + fold["val"])
    again = cases.create_split(
        Survey(pictures), num_train=2, num_validation=2, seed=9, split_file=str(path)
    )
    assert {*again.train, *again.validation} == {*split.train, *split.validation}
    assert set(again.test) == set(split.test)


def test_numbers_of_a_camera_are_no_channels(tmp_path):
    path = tmp_path / "splits_final.json"
    split = split_files.Split(("IMG_0001",), ("IMG_0002",), ("DSC_0001",))
    known = ("DSC_0001", "DSC_0002", "IMG_0001", "IMG_0002")
    for every in (known, ()):
        nnunet_folds.write(path, split, every)
        (fold,) = json.loads(path.read_text())
        assert fold == {"train": ["IMG_0001", "IMG_0002"], "val": ["DSC_0001"]}
    assert nnunet_folds.read(path, 0, known) == {
        "pool": ("IMG_0001", "IMG_0002"),
        "test": ("DSC_0001",),
    }
    # Those of a split alone may have names that are only unique there.
    nnunet_folds.write(path, split_files.Split(("IMG_0001",), (), ("DSC_0001",)), known)
    assert json.loads(path.read_text()) == [{"train": ["IMG_0001"], "val": ["DSC_0001"]}]
    path.write_text(json.dumps([{"train": ["IMG"], "val": ["DSC_0001"]}]))
    with pytest.raises(InputError, match="there is no case 'IMG'"):
        nnunet_folds.read(path, 0, known)
    path.write_text(json.dumps([{"train": ["CT"], "val": ["IMG"]}]))
    found = nnunet_folds.read(path, 0, ("CT_0000", "IMG", "IMG_0001"))
    assert found == {"pool": ("CT_0000",), "test": ("IMG",)}


def test_volumes_likewise_and_what_is_refused(tmp_path):
    source = VolumeSource(str(volumes.write_nnunet(tmp_path / "data", number=6)))
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(folds_of([f"ball_{i:03d}" for i in range(6)])))
    found = nnunet_folds.read(path, 0, source.ids)
    assert found == {
        "pool": ("ball_003", "ball_004", "ball_005"),
        "test": ("ball_000", "ball_001", "ball_002"),
    }
    path.write_text(json.dumps(folds_of(["ball_000", "ball_999"])))
    with pytest.raises(
        InputError, match=r"splits_final.json \(fold 0\): there is no case 'ball_999'"
    ):
        nnunet_folds.read(path, 0, source.ids)
    path.write_text(json.dumps([["ball_000"]]))
    with pytest.raises(InputError, match="fold 0 is not of the form"):
        nnunet_folds.read(path, 0, source.ids)
    both = [{"train": ["ball_000", "ball_001"], "val": ["ball_001"]}]
    path.write_text(json.dumps(both))
    with pytest.raises(InputError, match="'train' and 'val' share 'ball_001'"):
        nnunet_folds.read(path, 0, source.ids)
    path.write_text('{"pool": []}')
    assert nnunet_folds.read(path, 0, source.ids) is None
    assert split_files.read_lists(path, source.ids) == {"pool": ()}
