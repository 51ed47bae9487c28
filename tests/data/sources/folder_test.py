"""Users' folders: layouts that must work and faults that must be named."""

import numpy as np
import pytest
from PIL import Image

from fewshotseg.data import cases
from fewshotseg.data.check import check_source
from fewshotseg.data.sources.folder import FolderSource
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError


def _write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _image(index):
    return np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)


def _mask(index, value=255):
    mask = np.zeros((12, 16), np.uint8)
    mask[index : index + 4, 3:9] = value
    return mask


def _folders(tmp_path, number=5, ending=""):
    for index in range(number):
        _write(tmp_path / "images" / f"case{index}.png", _image(index))
        _write(tmp_path / "masks" / f"case{index}{ending}.png", _mask(index))
    return tmp_path / "images", tmp_path / "masks"


@pytest.mark.parametrize(
    "ending", ["", "_mask", "_segmentation", "_label", "_seg", "_gt", "_mask_1", "_Mask", "-mask"]
)
def test_masks_are_found_by_name(tmp_path, ending):
    source = FolderSource(*_folders(tmp_path, ending=ending), ("lesion",), "mine")
    assert source.name == "mine" and source.class_names == ("lesion",)
    assert source.ids == ("case0", "case1", "case2", "case3", "case4")
    assert source.official_splits == {}
    for index, case_id in enumerate(source.ids):
        case = source.load(case_id)
        np.testing.assert_array_equal(case.image, _image(index))
        np.testing.assert_array_equal(case.mask, _mask(index, 1))
        assert (case.id, case.group, case.notes) == (case_id, "", ())


def test_one_folder_with_numbered_masks(tmp_path):
    for index in range(4):
        _write(tmp_path / f"benign ({index}).png", _image(index))
        _write(tmp_path / f"benign ({index})_mask.png", _mask(0))
    _write(tmp_path / "benign (2)_mask_1.png", _mask(5) > 0)
    source = FolderSource(tmp_path, tmp_path)
    assert source.ids == ("benign (0)", "benign (1)", "benign (2)", "benign (3)")
    np.testing.assert_array_equal(source.load("benign (1)").mask, _mask(0, 1))
    np.testing.assert_array_equal(source.load("benign (2)").mask, _mask(0, 1) | _mask(5, 1))


def test_subfolders_may_repeat_names(tmp_path):
    for index, part in enumerate(("train", "validation")):
        for number in range(2):
            _write(tmp_path / "images" / part / f"{number}.png", _image(2 * index + number))
            _write(tmp_path / "masks" / part / f"{number}_gt.png", _mask(2 * index + number))
    source = FolderSource(tmp_path / "images", tmp_path / "masks")
    assert source.ids == ("train/0", "train/1", "validation/0", "validation/1")
    np.testing.assert_array_equal(source.load("validation/1").image, _image(3))
    np.testing.assert_array_equal(source.load("validation/1").mask, _mask(3, 1))


def test_folders_called_images_and_labels_inside_one_root(tmp_path):
    for index, part in enumerate(("train", "validation")):
        for number in range(2):
            _write(tmp_path / part / "images" / f"{number}.png", _image(2 * index + number))
            _write(tmp_path / part / "labels" / f"{number}.png", _mask(2 * index + number))
    source = FolderSource(tmp_path, tmp_path)
    assert source.ids == ("train/0", "train/1", "validation/0", "validation/1")
    np.testing.assert_array_equal(source.load("validation/0").mask, _mask(2, 1))


def test_masks_inside_the_image_folder(tmp_path):
    images, masks = _folders(tmp_path)
    masks.rename(images / "masks")
    assert len(FolderSource(images, images / "masks").ids) == 5


def test_several_pairs_of_folders(tmp_path):
    first = _folders(tmp_path / "a", 3)
    _write(tmp_path / "b" / "images" / "other.png", _image(7))
    _write(tmp_path / "b" / "masks" / "other.png", _mask(7))
    second = (tmp_path / "b" / "images", tmp_path / "b" / "masks")
    source = FolderSource((first[0], second[0]), (first[1], second[1]))
    assert source.ids == ("case0", "case1", "case2", "other")
    np.testing.assert_array_equal(source.load("other").image, _image(7))
    with pytest.raises(InputError, match="1 image folders but 2 mask folders"):
        FolderSource(first[0], (first[1], second[1]))
    with pytest.raises(InputError, match="same id 'case"):
        FolderSource((first[0], first[0]), (first[1], first[1]))


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    images, masks = _folders(tmp_path)
    (images / ".DS_Store").write_bytes(b"x")
    (images / "._case0.png").write_bytes(b"x")
    (images / "metadata.csv").write_text("a,b")
    _write(images / "case0_superpixels.png", _image(0))
    _write(tmp_path / "images" / "__MACOSX" / "case0.png", _image(0))
    assert len(FolderSource(images, masks).ids) == 5


def test_include_restricts(tmp_path):
    images, masks = _folders(tmp_path, 6)
    _write(images / "unlabelled.png", _image(9))
    wanted = ["case4", "case0", "case2.png", "case5"]
    source = FolderSource(images, masks, include=wanted)
    assert source.ids == ("case0", "case2", "case4", "case5")
    (tmp_path / "list.txt").write_text("# my cases\ncase4\ncase0\n\ncase2\ncase5\n")
    assert FolderSource(images, masks, include=tmp_path / "list.txt").ids == source.ids
    with pytest.raises(InputError, match="'cas1'.*closest is 'case1'"):
        FolderSource(images, masks, include=["cas1", *wanted])
    with pytest.raises(InputError, match="no mask for 1 of 5.*unlabelled"):
        FolderSource(images, masks, include=["unlabelled", *wanted])


def test_groups_come_from_the_id(tmp_path):
    source = FolderSource(*_folders(tmp_path), group_pattern=r"case([0-2])")
    assert [source.load(i).group for i in source.ids] == ["0", "1", "2", "", ""]
    with pytest.raises(InputError, match="no regular expression"):
        FolderSource(*_folders(tmp_path), group_pattern="(")


def test_a_group_pattern_that_matches_nothing_is_refused(tmp_path):
    folders = _folders(tmp_path)
    with pytest.raises(InputError, match=r"'patient\(.*none of the 5 ids.*case0, case1.*0 groups"):
        FolderSource(*folders, group_pattern=r"patient(\d+)")
    source = FolderSource(*folders, group_pattern=r"patient(\d+)", strict=False)
    assert "0 groups" in source.faults["group_pattern"] and len(source.ids) == 5


def test_a_group_pattern_that_matches_some_ids_is_told(tmp_path):
    images, masks = _folders(tmp_path, 8)
    said = "which leaves 2 of the 8 ids without a group, for example case6, case7"
    source = FolderSource(images, masks, group_pattern=r"case[0-5]")
    assert len(source.notes) == 1 and said in source.notes[0]
    assert "data.folder.group_pattern" in source.notes[0]
    report = check_source(source, tmp_path / "check", 16, quiet=True, draw=_draw)
    assert said in report["warnings"][0] and not report["split_notes"] and not report["faults"]
    notes = _draw(Survey(source)).notes
    assert [said in note for note in notes].count(True) == 1
    assert not FolderSource(images, masks, group_pattern=r"case\d").notes


def _draw(survey):
    return cases.create_split(survey, num_train=2, num_validation=1, seed=0, look_alike=1.0)


def test_several_classes(tmp_path):
    images, masks = _folders(tmp_path)
    for path in masks.iterdir():
        _write(path, _mask(0, 1) + _mask(7, 2))
    source = FolderSource(images, masks, ("disc", "cup"))
    assert set(np.unique(source.load("case1").mask)) == {0, 1, 2}


def test_one_file_per_class_is_refused(tmp_path):
    images, masks = _folders(tmp_path, ending="_mask_1")
    for index in range(5):
        _write(masks / f"case{index}_mask_2.png", _mask(0))
    assert len(FolderSource(images, masks).ids) == 5
    with pytest.raises(InputError, match="one file per class"):
        FolderSource(images, masks, ("disc", "cup"))


def test_notes_reach_the_case(tmp_path):
    images, masks = _folders(tmp_path)
    Image.fromarray(_image(0)).convert("RGBA").save(images / "case0.png")
    _write(masks / "case0.png", _mask(0, 9))
    notes = FolderSource(images, masks).load("case0").notes
    assert notes == ("alpha channel dropped", "mask value 9 read as foreground")


def _no_folder(images, masks):
    images.rename(images.with_name("elsewhere"))
    return r"images: there is no such folder"


def _no_images(images, masks):
    for path in images.iterdir():
        path.unlink()
    return r"images: no images found.*\.png"


def _no_masks(images, masks):
    for path in masks.iterdir():
        path.unlink()
    return r"masks: no masks found"


def _image_without_mask(images, masks):
    (masks / "case1.png").unlink()
    (masks / "case3.png").unlink()
    return r"no mask for 2 of 5 images \(case1\.png, case3\.png\).*_segmentation"


def _mask_without_image(images, masks):
    (images / "case1.png").unlink()
    return r"1 mask has no image \(case1\.png\)"


def _names_that_never_match(images, masks):
    for path in masks.iterdir():
        path.rename(path.with_name(path.name.replace("case", "truth")))
    return r"no mask for 5 of 5 images.*Masks without image: truth0\.png"


def _sizes_differ(images, masks):
    _write(masks / "case2.png", _mask(0)[:6])
    return r"case2\.png: the mask is 16 x 6 pixels.*case2\.png is 16 x 12"


def _mask_is_turned(images, masks):
    _write(masks / "case2.png", _mask(0).T.copy())
    return r"the mask is 12 x 16.*turned"


def _empty_file(images, masks):
    (images / "case3.png").write_bytes(b"")
    return r"case3\.png: the file is empty"


def _two_corrupt_files(images, masks):
    (masks / "case2.png").write_bytes(b"damaged")
    (masks / "case3.png").write_bytes(b"damaged")
    return r"case2\.png: not a readable image.*Files with faults: 2"


def _no_foreground(images, masks):
    for path in masks.iterdir():
        _write(path, _mask(0, 0))
    return r"masks: none of the 5 masks has any foreground"


def _too_few(images, masks):
    for name in ("case1.png", "case3.png"):
        (images / name).unlink()
        (masks / name).unlink()
    return r"images: 3 labelled images found, but at least 4"


def _nifti(images, masks):
    (masks / "case0.nii.gz").write_bytes(b"1234")
    return r"case0\.nii\.gz: NIfTI.*PNG"


def _two_dicoms(images, masks):
    (images / "a.dcm").write_bytes(b"1234")
    (images / "b.dcm").write_bytes(b"1234")
    return r"a\.dcm: DICOM.*2 such files"


def _phone_photo(images, masks):
    (images / "IMG_1.HEIC").write_bytes(b"1234")
    return r"IMG_1\.HEIC: HEIC.*convert"


def _same_id(images, masks):
    _write(images / "case0.jpg", _image(0))
    return r"case0\.png: .*case0\.jpg has the same id 'case0'"


def _two_masks(images, masks):
    _write(masks / "case0_mask.png", _mask(0))
    return r"case0_mask\.png: case0\.png is a mask of the same image"


@pytest.mark.parametrize(
    "spoil",
    [
        _no_folder, _no_images, _no_masks, _image_without_mask, _mask_without_image,
        _names_that_never_match, _sizes_differ, _mask_is_turned, _empty_file, _two_corrupt_files,
        _no_foreground, _too_few, _nifti, _two_dicoms, _phone_photo, _same_id, _two_masks,
    ],
)  # fmt: skip
def test_faults_are_named_at_once(tmp_path, spoil):
    images, masks = _folders(tmp_path)
    assert FolderSource(images, masks).ids
    message = spoil(images, masks)
    with pytest.raises(InputError, match=message) as error:
        FolderSource(images, masks)
    assert "\n" not in str(error.value)


def test_faults_inside_files_appear_on_load(tmp_path):
    images, masks = _folders(tmp_path)
    Image.fromarray(_image(1)).save(images / "case1.png", compress_level=0)
    (images / "case1.png").write_bytes((images / "case1.png").read_bytes()[:300])
    _write(masks / "case2.png", np.maximum(_mask(0, 1), _mask(6, 2)))
    source = FolderSource(images, masks)
    with pytest.raises(InputError, match=r"case1\.png: truncated"):
        source.load("case1")
    with pytest.raises(InputError, match=r"case2\.png.*0, 1, 2"):
        source.load("case2")
    with pytest.raises(InputError, match="'case9'.*closest is 'case"):
        source.load("case9")


def test_without_strictness_faults_wait(tmp_path):
    images, masks = _folders(tmp_path)
    _two_corrupt_files(images, masks)
    source = FolderSource(images, masks, strict=False)
    assert set(source.faults) == {"case2", "case3"}
    assert source.load("case1").mask.any()
    with pytest.raises(InputError, match=r"case3\.png"):
        source.load("case3")


def test_all_faults_of_all_kinds_are_kept(tmp_path):
    images, masks = _folders(tmp_path, 8)
    for spoil in (_sizes_differ, _empty_file, _same_id, _nifti):
        spoil(images, masks)
    (masks / "case1.png").unlink()
    (images / "case4.png").unlink()
    source = FolderSource(images, masks, strict=False)
    assert set(source.faults) == {
        "case2", "case3", "images/case0.png", "images/case1.png", "masks/case4.png",
        "masks/case0.nii.gz",
    }  # fmt: skip
    assert source.ids == ("case0", "case2", "case3", "case5", "case6", "case7")
    with pytest.raises(InputError, match="NIfTI.*3 more of other kinds"):
        FolderSource(images, masks)


def test_a_small_test_set_can_be_allowed(tmp_path):
    assert len(FolderSource(*_folders(tmp_path, 2), minimum_cases=1).ids) == 2


def test_real_layouts(shared_data):
    isic = shared_data / "isic2017"
    for part, number in {"Training": 120, "Validation": 100}.items():
        source = FolderSource(
            isic / f"ISIC-2017_{part}_Data", isic / f"ISIC-2017_{part}_Part1_GroundTruth"
        )
        assert len(source.ids) == number and source.ids[0].startswith("ISIC_")
        assert source.load(source.ids[0]).mask.any()
    drive = shared_data / "drive" / "DRIVE" / "training"
    source = FolderSource(drive / "images", drive / "1st_manual")
    assert len(source.ids) == 10 and "21_training" in source.ids
    assert 0.05 < source.load("21_training").mask.mean() < 0.2
    kvasir = shared_data / "kvasir_seg" / "Kvasir-SEG"
    source = FolderSource(kvasir / "images", kvasir / "masks")
    assert len(source.ids) == 200
    assert 0.01 < source.load("cju1amqw6p8pw0993d9gc5crl").mask.mean() < 0.9


def test_real_fuseg_lists_and_empty_masks(shared_data):
    root = shared_data / "fuseg" / "Foot Ulcer Segmentation Challenge"
    whole = FolderSource(root, root)
    assert len(whole.ids) == 180
    assert not whole.load("train/0600").mask.any()
    listed = FolderSource(root, root, include=shared_data / "splits" / "fuseg" / "train.txt")
    assert len(listed.ids) == 40 and listed.ids[0] == "train/0018"
    part = FolderSource(root / "train" / "images", root / "train" / "labels")
    np.testing.assert_array_equal(part.load("0018").mask, whole.load("train/0018").mask)


def test_real_busi_joins_masks(shared_data):
    root = shared_data / "busi" / "Dataset_BUSI_with_GT"
    source = FolderSource(root, root, include=shared_data / "splits" / "busi" / "train.txt")
    assert len(source.ids) == 40 and all("_mask" not in case_id for case_id in source.ids)
    whole = FolderSource(root, root)
    assert len(whole.ids) == 184
    joined = sorted(root.rglob("*_mask_1.png"))
    assert joined
    for path in joined:
        case_id = path.relative_to(root).as_posix().removesuffix("_mask_1.png")
        first = np.asarray(Image.open(root / f"{case_id}_mask.png").convert("L")) > 0
        second = np.asarray(Image.open(path).convert("L")) > 0
        mask = whole.load(case_id).mask
        assert mask.sum() > max(first.sum(), second.sum())
        assert mask[first | second].all()
