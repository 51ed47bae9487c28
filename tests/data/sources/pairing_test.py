"""Layouts in which images and masks come, and names that fit nothing or too much."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from fewshotseg.data.sources import pairing
from fewshotseg.data.sources.folder import FolderSource
from fewshotseg.data.split_files import resolve_ids
from fewshotseg.errors import InputError

# Image -> its masks, below one root; {} is a number. The image folder, the mask folder.
LAYOUTS = {
    "nnU-Net": ({"imagesTr/case{}_0000.png": ["labelsTr/case{}.png"]}, "imagesTr", "labelsTr"),
    "nnU-Net, root": ({"imagesTr/case{}_0000.png": ["labelsTr/case{}.png"]}, "", ""),
    "nnU-Net, beside": ({"case{}_0000.png": ["case{}.png"]}, "", ""),
    "DRIVE": ({"images/{}_training.tif": ["1st_manual/{}_manual1.gif"]}, "images", "1st_manual"),
    "DRIVE, root": ({"images/{}_training.tif": ["1st_manual/{}_manual1.gif"]}, "", ""),
    "CHASE": ({"Image_0{}L.jpg": ["Image_0{}L_1stHO.png"]}, "", ""),
    "mask first": ({"images/{}.png": ["masks/mask_{}.png"]}, "images", "masks"),
    "both first": ({"img_{}.png": ["mask_{}.png"]}, "", ""),
    "mask first, beside": ({"{}.jpg": ["mask_{}.png"]}, "", ""),
    "ending": ({"{}.jpg": ["{}_mask.png"]}, "", ""),
    "seg": ({"images/{}.jpg": ["masks/{}_seg.png"]}, "images", "masks"),
    "label": ({"{}.jpg": ["{}_label.png"]}, "", ""),
    "gt": ({"{}.jpg": ["{}_gt.png"]}, "", ""),
    "parts": ({"{}.jpg": ["{}_mask.png", "{}_mask_1.png"]}, "", ""),
    "folder per case": ({"case{}/image.png": ["case{}/mask.png"]}, "", ""),
    "folder per case, parts": ({"c{}/image.png": ["c{}/mask_1.png", "c{}/mask_2.png"]}, "", ""),
    "Cellpose": ({"{}_img.png": ["{}_masks.png"]}, "", ""),
    "Cellpose, plain": ({"a{}.tif": ["a{}_cp_masks.png"]}, "", ""),
    "PH2": ({"IMD00{}.bmp": ["IMD00{}_lesion.bmp"]}, "", ""),
    "ISIC": ({"i/ISIC_{}.jpg": ["m/ISIC_{}_segmentation.png"]}, "i", "m"),
    "CVC": ({"Original/{}.tif": ["Ground Truth/{}.tif"]}, "Original", "Ground Truth"),
    "CVC, root": ({"Original/{}.tif": ["Ground Truth/{}.tif"]}, "", ""),
    "parts of a set": ({"train/images/{}.png": ["train/labels/{}.png"]}, "", ""),
    "lesions beside": ({"lesion_{}.png": ["lesion_{}_mask.png"]}, "", ""),
    "lesions": ({"left {} lesion.png": ["left {} lesion_mask.png"]}, "", ""),
}
IDS = {
    "folder per case": "case{}", "folder per case, parts": "c{}", "parts of a set": "train/{}",
    "nnU-Net, root": "case{}_0000", "DRIVE, root": "{}_training", "CVC, root": "{}",
}  # fmt: skip


def _write(path, value, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:3, : value + 1] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    files, images_dir, masks_dir = LAYOUTS[layout]
    ((image, masks),) = files.items()
    for number in range(1, 5):
        _write(tmp_path / image.format(number), 7)
        for mask in masks:
            _write(tmp_path / mask.format(number), number)
    if layout == "CHASE":
        _write(tmp_path / "Image_01L_2ndHO.png", 0)  # another observer's drawing is left alone
    source = FolderSource(tmp_path / images_dir, tmp_path / masks_dir)
    name = IDS.get(layout, image.removeprefix(images_dir).lstrip("/").rpartition(".")[0])
    assert source.ids == tuple(name.format(number) for number in range(1, 5))
    for number, case_id in enumerate(source.ids, start=1):
        case = source.load(case_id)
        assert case.mask.sum() == 3 * (number + 1) and case.image[0, 7, 0] > 200


def test_what_fits_two_images_is_not_guessed(tmp_path):
    for name in ("a_0000", "a_img", "b"):
        _write(tmp_path / "images" / f"{name}.png", 1)
    for name in ("a", "b"):
        _write(tmp_path / "masks" / f"{name}.png", 1)
    found = pairing.pair_folders(tmp_path / "images", tmp_path / "masks")
    assert set(found.masks) == {"b"}
    assert [(fault.kind, fault.path.name) for fault in found.faults] == [("ambiguous", "a.png")]
    assert "fits several images (a_0000.png, a_img.png)" in found.faults[0].message
    _write(tmp_path / "masks" / "b_gt.png", 1)
    found = pairing.pair_folders(tmp_path / "images", tmp_path / "masks")
    assert "b.png is a mask of the same image" in found.faults[1].message


def test_an_exact_name_wins_over_words(tmp_path):
    for name in ("scan", "scan_0000", "scan_test"):
        _write(tmp_path / "images" / f"{name}.png", 1)
        _write(tmp_path / "masks" / f"{name}.png", 1)
    found = pairing.pair_folders(tmp_path / "images", tmp_path / "masks")
    assert not found.faults
    assert all(path.stem == case_id for case_id, (path,) in found.masks.items())


def test_mask_pattern(tmp_path):
    for number in range(4):
        _write(tmp_path / "eyes" / f"eye{number}.png", 7)
        _write(tmp_path / "drawn" / f"expert-A-eye{number}-final.png", number + 1)
    folders = tmp_path / "eyes", tmp_path / "drawn"
    with pytest.raises(InputError, match="no mask for 4 of 4 images"):
        FolderSource(*folders)
    source = FolderSource(*folders, mask_pattern="expert-*-{stem}-final.png")
    assert source.load("eye3").mask.sum() == 15
    beside = tmp_path / "beside"
    for number in range(4):
        _write(beside / f"eye{number}.png", 7)
        _write(beside / f"drawing of eye{number}.png", number + 1)
    source = FolderSource(beside, beside, mask_pattern="drawing of {stem}")
    assert source.ids == ("eye0", "eye1", "eye2", "eye3")
    assert [source.load(i).mask.sum() for i in source.ids] == [6, 9, 12, 15]
    with pytest.raises(InputError, match="write {stem} once"):
        FolderSource(beside, beside, mask_pattern="*_mask")


def test_table_of_pairs(tmp_path):
    rows = ["image,mask,group"]
    for number in range(4):
        _write(tmp_path / "pictures" / f"IMG {number}.png", 7)
        _write(tmp_path / "x" / f"{number}a.png", number)
        _write(tmp_path / "x" / f"{number}b.png", number + 1)
        rows.append(f"pictures/IMG {number}.png,x/{number}a.png;x/{number}b.png,p{number // 2}")
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows) + "\n")
    source = FolderSource(pairs_csv=table)
    assert source.ids == tuple(f"pictures/IMG {number}" for number in range(4))
    loaded = [source.load(i) for i in source.ids]
    assert [case.mask.sum() for case in loaded] == [6, 9, 12, 15]
    assert [case.group for case in loaded] == ["p0", "p0", "p1", "p1"]
    table.write_text(
        "\n".join([*rows, "pictures/gone.png,x/0a.png,", "pictures/IMG 0.png,x/0a.png,"])
    )
    with pytest.raises(InputError, match=r"IMG 0\.png: .*same id.*1 more of other kinds"):
        FolderSource(pairs_csv=table)
    faults = FolderSource(pairs_csv=table, strict=False).faults
    assert list(faults) == ["pictures/gone.png", "pictures/IMG 0.png"]
    table.write_text("picture;mask\n")
    with pytest.raises(InputError, match="columns image, mask"):
        FolderSource(pairs_csv=table)
    with pytest.raises(InputError, match="cannot be read .No such file"):
        FolderSource(pairs_csv=tmp_path / "none.csv")


def test_a_forbidden_folder_is_named(tmp_path, monkeypatch):
    for number in range(4):
        _write(tmp_path / "images" / f"{number}.png", 1)
        _write(tmp_path / "masks" / f"{number}.png", 1)
    scan = os.scandir

    def forbidden(folder):
        if str(folder).endswith("masks"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(InputError, match="masks: no permission to read this folder"):
        FolderSource(tmp_path / "images", tmp_path / "masks")


def test_masks_beside_the_images_of_a_prediction(tmp_path):
    images = {tmp_path / "7", tmp_path / "b", tmp_path / "mask"}
    for name, expected in {
        "7_mask.png": True, "mask_7.png": True, "b_gt.png": True, "c_mask.png": False,
        "mask.png": False, "7.png": False,
    }.items():  # fmt: skip
        assert pairing.is_mask_of(tmp_path / name, images) == expected, name


def _cases(folder, *places):
    for place in places:
        for kind in ("images", "masks"):
            _write(folder / kind / place, 1)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    _cases(tmp_path, "a.png", "_b/c.png", "__MACOSX/d.png", ".trash/e.png")
    _cases(tmp_path / "elsewhere", "f.png", "deep/g.png")
    for kind in ("images", "masks"):
        (tmp_path / kind / "site").symlink_to(tmp_path / "elsewhere" / kind)
        (tmp_path / "elsewhere" / kind / "back").symlink_to(tmp_path / kind)
        (tmp_path / kind / "_b" / "all").symlink_to(tmp_path)
    found = pairing.pair_folders(tmp_path / "images", tmp_path / "masks")
    assert not found.faults and found.images.keys() == found.masks.keys()
    assert set(found.images) == {"a", "_b/c", "site/f", "site/deep/g"}


def test_accents_of_macos_match(tmp_path):
    one, two = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    _write(tmp_path / "images" / f"{one}.png", 1)
    _write(tmp_path / "masks" / f"{two}_mask.png", 1)
    for pattern in ("", "{stem}_mask"):
        found = pairing.pair_folders(tmp_path / "images", tmp_path / "masks", pattern)
        assert not found.faults and list(found.masks) == [one]
    assert resolve_ids([two, f"{two}.png"], [one], "the list") == (one,)


def test_names_that_are_not_utf8_are_faults(tmp_path):
    _cases(tmp_path, "a.png", "b.png", "c.png", "d.png")
    name = os.fsdecode(b"M\xfcller.png")
    for kind in ("images", "masks"):
        (tmp_path / kind / "d.png").rename(tmp_path / kind / name)
    source = FolderSource(tmp_path / "images", tmp_path / "masks", strict=False, minimum_cases=1)
    assert source.ids == ("a", "b", "c") and len(source.faults) == 2
    for fault in source.faults.values():
        assert (
            fault.endswith("M\\xfcller.png: the name is not UTF-8: rename it.") and fault.encode()
        )
    with pytest.raises(InputError, match="not UTF-8: rename it"):
        FolderSource(tmp_path / "images", tmp_path / "masks")
