"""Every builder on small files in the official layout, with faults, and on real images if present."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from fewshotseg import labels
from fewshotseg.data.builders import base
from fewshotseg.data.sources import tfds as datasets
from fewshotseg.errors import InputError

HEIGHT, WIDTH = 10, 14
OUTSIDE = 6  # columns of a picture of DRIVE that are outside the field of view


def _image(seed, channels=3):
    shape = (HEIGHT, WIDTH, 3) if channels == 3 else (HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _mask(seed, value=255):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[seed % 5 : seed % 5 + 4, 2:9] = value
    return mask


def _write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _isic(root, folders, **_):
    for seed, (images, masks) in enumerate(folders):
        _write(root / images / f"ISIC_000000{seed}.jpg", _image(seed))
        _write(root / masks / f"ISIC_000000{seed}_segmentation.png", _mask(seed))
        _write(root / images / f"ISIC_000000{seed}_superpixels.png", _image(seed))
        (root / images / "metadata.csv").write_text("image_id\n")
    return {"train": ["ISIC_0000000"], "validation": ["ISIC_0000001"], "test": ["ISIC_0000002"]}


def _isic2017(root):
    return _isic(
        root,
        [
            (f"ISIC-2017_{part}_Data", f"ISIC-2017_{part}_Part1_GroundTruth")
            for part in ("Training", "Validation", "Test_v2")
        ],
    )


def _isic2018(root):
    return _isic(
        root,
        [
            (f"ISIC2018_Task1-2_{part}_Input", f"ISIC2018_Task1_{part}_GroundTruth")
            for part in ("Training", "Validation", "Test")
        ],
    )


def _ph2(root):
    for seed, name in enumerate(("IMD002", "IMD003")):
        folder = root / "PH2Dataset" / "PH2 Dataset images" / name
        _write(folder / f"{name}_Dermoscopic_Image" / f"{name}.bmp", _image(seed))
        _write(folder / f"{name}_lesion" / f"{name}_lesion.bmp", _mask(seed) > 0)
        _write(folder / f"{name}_roi" / f"{name}_R1_Label3.bmp", _mask(seed) > 0)
    return {"cases": ["IMD002", "IMD003"]}


def _kvasir_seg(root):
    for seed, name in enumerate(("cju0", "cju1", "cju2")):
        _write(root / "Kvasir-SEG" / "images" / f"{name}.jpg", _image(seed))
        mask = np.repeat(_mask(seed)[..., None], 3, axis=-1)
        _write(root / "Kvasir-SEG" / "masks" / f"{name}.jpg", mask)
    return {"cases": ["cju0", "cju1", "cju2"]}


def _cvc_clinicdb(root):
    for seed in (1, 2, 10):
        _write(root / "CVC-ClinicDB" / "Original" / f"{seed}.tif", _image(seed))
        _write(root / "CVC-ClinicDB" / "Ground Truth" / f"{seed}.tif", _mask(seed))
    return {"cases": ["1", "10", "2"]}


def _fuseg(root):
    root = root / "Foot Ulcer Segmentation Challenge"
    for seed, part in enumerate(("train", "validation")):
        _write(root / part / "images" / "0011.png", _image(seed))
        _write(root / part / "labels" / "0011.png", np.repeat(_mask(seed)[..., None], 3, axis=-1))
    _write(root / "test" / "images" / "0012.png", _image(5))
    return {"train": ["train/0011"], "validation": ["validation/0011"]}


def _busi(root):
    root = root / "Dataset_BUSI_with_GT"
    for seed, kind in enumerate(("benign", "malignant")):
        _write(root / kind / f"{kind} (1).png", _image(seed, 1))
        _write(root / kind / f"{kind} (1)_mask.png", _mask(seed) > 0)
    _write(root / "benign" / "benign (1)_mask_1.png", _mask(4) > 0)
    _write(root / "normal" / "normal (1).png", _image(7))
    _write(root / "normal" / "normal (1)_mask.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return {"cases": ["benign (1)", "malignant (1)"]}


def _busi_with_normal(root):
    return {"cases": [*_busi(root)["cases"], "normal (1)"]}


def _fetreg(root):
    root = root / "FetReg2021_dataset"
    for seed, (part, video) in enumerate([("Train", "Video001"), ("Test", "Video010")]):
        folder = root / part / "Train_FetReg2021_Task1_Segmentation" / video
        _write(folder / "images" / f"{video}_frame00500.png", _image(seed))
        _write(folder / "labels" / f"{video}_frame00500.png", _mask(seed, seed + 2))
    return {"train": ["Video001_frame00500"], "test": ["Video010_frame00500"]}


def _drive(root):
    for seed, (part, number) in enumerate([("training", 21), ("test", "01")]):
        folder = root / "DRIVE" / part
        _write(folder / "images" / f"{number}_{part}.tif", _image(seed))
        _write(folder / "1st_manual" / f"{number}_manual1.gif", _mask(seed))
        inside = np.full((HEIGHT, WIDTH), 255, np.uint8)
        inside[:, :OUTSIDE] = 0
        _write(folder / "mask" / f"{number}_{part}_mask.gif", inside)
    return {"train": ["21"], "test": ["01"]}


LAYOUTS = {
    "busi": _busi,
    "busi_with_normal": _busi_with_normal,
    "cvc_clinicdb": _cvc_clinicdb,
    "drive": _drive,
    "fetreg": _fetreg,
    "fuseg": _fuseg,
    "isic2017": _isic2017,
    "isic2018": _isic2018,
    "kvasir_seg": _kvasir_seg,
    "ph2": _ph2,
}


def _prepare(name, tmp_path):
    datasets.prepare(name, tmp_path / "download", tmp_path / "data", progress=False)
    return datasets.TfdsSource(name, tmp_path / "data")


def test_every_data_set_is_tested():
    assert LAYOUTS.keys() | {*datasets.VOLUMES} == datasets.DATASETS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layout(name, tmp_path):
    expected = LAYOUTS[name](tmp_path / "download")
    source = _prepare(name, tmp_path)
    items = {
        item.id: item
        for item in datasets.builder_class(name)(data_dir=tmp_path / "x").checked_items(
            tmp_path / "download"
        )
    }
    assert source.ids == tuple(sorted(sum(expected.values(), [])))
    assert source.official_splits == {
        split: tuple(ids) for split, ids in expected.items() if split != "cases"
    }
    for case_id in source.ids:
        case = source.load(case_id)
        with Image.open(items[case_id].image) as file:
            pixels = np.asarray(file)
        np.testing.assert_array_equal(case.image, pixels.reshape(HEIGHT, WIDTH, -1))
        assert case.image.dtype == case.mask.dtype == np.uint8
        assert case.mask.shape == (HEIGHT, WIDTH)
        counted = labels.counts(case.mask)
        assert case.mask[counted].max() <= len(source.class_names)
        assert counted.all() == (name != "drive")


@pytest.mark.parametrize("name", LAYOUTS)
def test_metadata(name):
    builder = datasets.builder_class(name)
    assert builder.name == name and builder.class_names
    for text in (builder.description, builder.licence, builder.citation):
        assert text.strip()
    assert builder.homepage.startswith("http")
    assert "http" in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


@pytest.mark.parametrize("name", LAYOUTS)
def test_image_without_mask(name, tmp_path):
    LAYOUTS[name](tmp_path / "download")
    builder = datasets.builder_class(name)(data_dir=tmp_path / "data")
    item = builder.checked_items(tmp_path / "download")[0]
    for mask in item.masks:
        mask.unlink()
    with pytest.raises(InputError, match="is missing, as for 1 of") as error:
        _prepare(name, tmp_path)
    assert item.image.name in str(error.value) and "\n" not in str(error.value)
    assert not pathlib.Path(builder.data_path).exists()


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_of_the_data_set(name, tmp_path):
    (tmp_path / "download" / "holiday").mkdir(parents=True)
    with pytest.raises(InputError, match=f"nothing of {name} was found.*http") as error:
        _prepare(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_image_and_mask_of_different_size(name, tmp_path):
    LAYOUTS[name](tmp_path / "download")
    builder = datasets.builder_class(name)(data_dir=tmp_path / "data")
    mask = builder.checked_items(tmp_path / "download")[-1].masks[0]
    Image.fromarray(_mask(0)[:-2]).save(mask)
    with pytest.raises(InputError, match="14 x 8 pixels.*14 x 10"):
        _prepare(name, tmp_path)
    assert not pathlib.Path(builder.data_path).exists()


def test_masks_of_one_image_are_joined(tmp_path):
    _busi(tmp_path / "download")
    source = _prepare("busi", tmp_path)
    both = (_mask(0) > 0) | (_mask(4) > 0)
    np.testing.assert_array_equal(source.load("benign (1)").mask, both)
    np.testing.assert_array_equal(source.load("malignant (1)").mask, _mask(1) > 0)


def test_class_ids_and_videos(tmp_path):
    _fetreg(tmp_path / "download")
    source = _prepare("fetreg", tmp_path)
    assert source.class_names == ("vessel", "tool", "fetus")
    tool, fetus = source.load("Video001_frame00500"), source.load("Video010_frame00500")
    np.testing.assert_array_equal(tool.mask, _mask(0, 2))
    np.testing.assert_array_equal(fetus.mask, _mask(1, 3))
    assert (tool.group, fetus.group) == ("Video001", "Video010")


def test_grey_stays_grey_and_notes_are_kept(tmp_path):
    _kvasir_seg(tmp_path / "download")
    source = _prepare("kvasir_seg", tmp_path)
    assert "JPEG" in source.load("cju0").notes[0]
    _busi(tmp_path / "download")
    assert _prepare("busi", tmp_path).load("benign (1)").image.shape == (HEIGHT, WIDTH, 1)


def test_lists_of_the_authors_split_kvasir_seg(tmp_path):
    _kvasir_seg(tmp_path / "download")
    (tmp_path / "download" / "Kvasir-SEG" / "train.txt").write_text("cju1\ncju2.jpg\n")
    (tmp_path / "download" / "Kvasir-SEG" / "val.txt").write_text("cju0\n")
    source = _prepare("kvasir_seg", tmp_path)
    assert source.official_splits == {"train": ("cju1", "cju2"), "validation": ("cju0",)}


def test_table_of_sequences_groups_cvc_clinicdb(tmp_path):
    _cvc_clinicdb(tmp_path / "download")
    table = tmp_path / "download" / "CVC-ClinicDB" / "metadata.csv"
    table.write_text("frame_id,sequence_id\n1,1\n2,1\n10,2\n")
    source = _prepare("cvc_clinicdb", tmp_path)
    assert [source.load(i).group for i in ("1", "2", "10")] == ["sequence 1"] * 2 + ["sequence 2"]
    table.write_text("frame\n1\n")
    with pytest.raises(InputError, match="frame_id and sequence_id"):
        datasets.prepare("cvc_clinicdb", tmp_path / "download", tmp_path / "other", False)


def test_drive_without_test_drawings(tmp_path):
    _drive(tmp_path / "download")
    (tmp_path / "download" / "DRIVE" / "test" / "1st_manual" / "01_manual1.gif").unlink()
    (tmp_path / "download" / "DRIVE" / "test" / "1st_manual").rmdir()
    assert _prepare("drive", tmp_path).official_splits == {"train": ("21",)}


def test_outside_the_field_of_view_of_drive_nothing_counts(tmp_path):
    _drive(tmp_path / "download")
    source = _prepare("drive", tmp_path)
    for seed, case_id in enumerate(("21", "01")):
        mask = source.load(case_id).mask
        assert (mask[:, :OUTSIDE] == labels.IGNORED).all()
        np.testing.assert_array_equal(mask[:, OUTSIDE:], (_mask(seed) > 0)[:, OUTSIDE:])
    (tmp_path / "download" / "DRIVE" / "training" / "mask" / "21_training_mask.gif").unlink()
    with pytest.raises(InputError, match="21_training_mask.gif is missing, as for 1 of 2"):
        datasets.prepare("drive", tmp_path / "download", tmp_path / "other", False)


def test_inner_folder_may_be_given(tmp_path):
    _kvasir_seg(tmp_path)
    counts = datasets.prepare("kvasir_seg", tmp_path / "Kvasir-SEG", tmp_path / "data", False)
    assert counts == {"cases": 3}


def test_two_images_of_one_name(tmp_path):
    _cvc_clinicdb(tmp_path / "download")
    builder = datasets.builder_class("cvc_clinicdb")(data_dir=tmp_path / "data")
    item = builder.checked_items(tmp_path / "download")[0]
    builder.list_items = lambda folder: [item, item]
    with pytest.raises(InputError, match="two images are called '1'"):
        builder.checked_items(tmp_path / "download")


def test_more_cases_than_a_shard_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "CASES_PER_SHARD", 2)
    for seed in range(5):
        _write(tmp_path / "download" / "Kvasir-SEG" / "images" / f"c{seed}.png", _image(seed))
        _write(tmp_path / "download" / "Kvasir-SEG" / "masks" / f"c{seed}.png", _mask(seed))
    source = _prepare("kvasir_seg", tmp_path)
    assert len(list((tmp_path / "data").rglob("*array_record*"))) == 3
    for seed in (4, 0, 3, 1, 2):
        np.testing.assert_array_equal(source.load(f"c{seed}").image, _image(seed))
        np.testing.assert_array_equal(source.load(f"c{seed}").mask, _mask(seed, 1))


REAL = {  # TFDS split -> lists of ids that make it up
    "isic2017": {"train": ("train", "val", "extra"), "validation": ("test",)},
    "kvasir_seg": {"cases": ("train", "val", "extra", "test")},
    "fuseg": {"train": ("train", "val"), "validation": ("test",)},
    "busi": {"cases": ("train", "val", "test")},
    "busi_with_normal": {"cases": ("train", "val", "test", "normal_fixture")},
    "drive": {"train": ("train",), "test": ("test",)},
}


@pytest.mark.parametrize("name", REAL)
def test_real_images(name, shared_data, tmp_path):
    folder = name.removesuffix("_with_normal")
    counts = datasets.prepare(name, shared_data / folder, tmp_path, progress=False)
    source = datasets.TfdsSource(name, tmp_path)
    listed = {
        split: sorted(
            line
            for part in parts
            for line in (shared_data / "splits" / folder / f"{part}.txt").read_text().splitlines()
        )
        for split, parts in REAL[name].items()
    }
    assert counts == {split: len(ids) for split, ids in listed.items()}
    assert source.ids == tuple(sorted(sum(listed.values(), [])))
    with_foreground = 0
    for case_id in source.ids[:: max(1, len(source.ids) // 20)]:
        case = source.load(case_id)
        assert case.image.shape[:2] == case.mask.shape and case.image.shape[2] in (1, 3)
        counted = labels.counts(case.mask)
        assert set(np.unique(case.mask[counted])) <= {0, 1}
        assert case.mask[counted].mean() < 0.95
        # Two thirds of a picture of DRIVE are retina.
        assert 0.6 < counted.mean() < 0.75 if name == "drive" else counted.all()
        with_foreground += case.mask.any()
    assert with_foreground > 10


def test_all_faults_of_a_download_are_named_before_anything_is_written(tmp_path):
    folder = tmp_path / "download" / "Kvasir-SEG"
    for seed in range(8):
        _write(folder / "images" / f"c{seed}.png", _image(seed))
        _write(folder / "masks" / f"c{seed}.png", _mask(seed))
    (folder / "masks" / "c1.png").unlink()
    (folder / "images" / "c2.png").write_bytes(b"no image")
    _write(folder / "masks" / "c3.png", _mask(3)[:-2])
    legend = _mask(4)
    legend[:3] = 100
    _write(folder / "masks" / "c4.png", legend)
    with pytest.raises(InputError, match="^4 faults, and nothing was written") as error:
        _prepare("kvasir_seg", tmp_path)
    for words in (
        "c1.png is missing",
        "c2.png: not a readable",
        "14 x 8",
        "c4.png: expected a mask",
    ):
        assert words in str(error.value)
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_stray_values_of_an_official_mask_are_cut_with_a_note(tmp_path):
    root = tmp_path / "download"
    _fuseg(root)
    path = root / "Foot Ulcer Segmentation Challenge" / "train" / "labels" / "0011.png"
    mask = _mask(0)
    mask[0, 2] = 32  # 1 of 28 pixels that are not 0
    _write(path, np.repeat(mask[..., None], 3, axis=-1))
    case = _prepare("fuseg", tmp_path).load("train/0011")
    np.testing.assert_array_equal(case.mask, mask > 127)
    assert "stray" in case.notes[0]
