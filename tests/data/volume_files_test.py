"""NIfTI in and out, with SimpleITK as the other reader."""

import itertools
import warnings

import nibabel
import numpy as np
import pytest
import volumes

from fewshotseg.data import label_files, volume_files
from fewshotseg.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG types
    import SimpleITK


def test_grey_values_by_window_and_by_percentiles():
    values = np.array([-1000, -160, 40, 240, 3000], np.int16)
    window = volume_files.GreyValues(window=(-160, 240))
    np.testing.assert_allclose(window(values), [0, 0, 127.5, 255, 255])
    many = np.arange(1001, dtype=np.float32)
    many[-1] = 1e6  # one bright voxel
    robust = volume_files.GreyValues()(many)
    assert robust.dtype == np.float32 and robust[500] == pytest.approx(127.5, abs=0.1)
    assert robust.min() == 0 and robust.max() == 255
    assert not volume_files.GreyValues()(np.full(9, 7.0)).any()
    rare = np.zeros(10_000)
    rare[:3] = 4.0  # beyond both percentiles
    assert volume_files.GreyValues()(rare).max() == 255
    for fields in ({"window": (3, 2)}, {"percentiles": ()}, {"window": (1, 2, 3)}):
        with pytest.raises(InputError, match="two numbers, the lower one first"):
            volume_files.GreyValues(**fields)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_stored_types_are_kept(tmp_path, dtype):
    image, _ = volumes.make_ball(0, dtype=dtype)
    volume = volume_files.read_volume(volumes.save(tmp_path / "a.nii", image))
    assert volume.values.dtype == dtype
    assert volume.spacing == (2.0, 1.5, 1.0)
    np.testing.assert_array_equal(volume.values, image.transpose(2, 1, 0)[:, ::-1, ::-1])


def test_a_prediction_lies_where_its_image_lies(tmp_path):
    """By a reader of another library: the same direction, origin and spacing, voxel for voxel."""
    affine = np.array([[0, 0, 2.5, -30], [-0.7, 0.05, 0, 12], [0.05, 0.7, 0, 5], [0, 0, 0, 1.0]])
    image, label = volumes.make_ball(1)
    path = volumes.save(tmp_path / "image.nii.gz", image, affine)
    drawn = volumes.save(tmp_path / "label.nii.gz", label, affine)
    volume = volume_files.read_volume(path)
    mask = label_files.to_class_ids(volume_files.read_volume(drawn).values, 2, drawn)
    label_files.write_labels(tmp_path / "out.nii.gz", mask, volume)
    first, written = (
        SimpleITK.ReadImage(str(tmp_path / n)) for n in ("image.nii.gz", "out.nii.gz")
    )
    for get in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(written, get)(), getattr(first, get)(), atol=1e-6)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), label.transpose(2, 1, 0))
    again = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(again.affine, nibabel.load(path).affine)
    assert again.get_data_dtype() == np.uint8
    before, after = nibabel.load(path).header, again.header
    for field in ("sform_code", "qform_code", "pixdim", "xyzt_units", "srow_x"):
        np.testing.assert_array_equal(before[field], after[field])


def test_all_48_orders_and_directions_are_written_as_they_were_read(tmp_path):
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    orders = itertools.product(
        itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    )
    for order, signs in orders:
        affine = np.eye(4)
        affine[:3, :3] = np.diag(signs)[list(order)] * (0.5, 1.0, 2.5)
        affine[:3, 3] = (-12.3, 7.1, 100.7)
        path = volumes.save(tmp_path / "a.nii", array, affine)
        volume = volume_files.read_volume(path)
        label_files.write_labels(tmp_path / "b.nii", volume.values, volume)
        written, read = nibabel.load(tmp_path / "b.nii"), nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(written.dataobj), array)
        np.testing.assert_array_equal(written.affine, read.affine)
        np.testing.assert_allclose(written.affine, affine, atol=1e-6)


def test_a_display_window_and_a_scale_are_not_handed_on(tmp_path):
    file = nibabel.Nifti1Image(np.full((4, 4, 4), 7, np.int16), np.eye(4))
    file.header.set_slope_inter(0.5, -3)
    file.header["cal_max"] = 900
    nibabel.save(file, tmp_path / "a.nii")
    volume = volume_files.read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.values, np.full((4, 4, 4), 7 * 0.5 - 3, np.float32))
    label_files.write_labels(tmp_path / "b.nii", np.full((4, 4, 4), 3, np.uint8), volume)
    written = nibabel.load(tmp_path / "b.nii")
    assert np.all(np.asarray(written.dataobj) == 3) and written.header["cal_max"] == 0


def test_files_that_are_refused(tmp_path):
    image, label = volumes.make_ball(0)
    save = volumes.save
    series = save(tmp_path / "series.nii", np.stack([image, image], -1))
    with pytest.raises(InputError, match=r"4 axes \(12 x 14 x 10 x 2\).*file of its own"):
        volume_files.read_volume(series)
    one = save(tmp_path / "one.nii", image[..., None])
    assert volume_files.read_volume(one).values.shape == (10, 14, 12)
    hole = np.where(label == 1, np.nan, image)
    with pytest.raises(InputError, match="NaN"):
        volume_files.read_volume(save(tmp_path / "hole.nii", hole))
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        volume_files.read_volume(tmp_path / "text.nii")
    content = save(tmp_path / "whole.nii", image).read_bytes()
    (tmp_path / "half.nii").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        volume_files.read_volume(tmp_path / "half.nii")
    with pytest.raises(InputError, match="no such file"):
        volume_files.read_volume(tmp_path / "none.nii")


@pytest.mark.parametrize(
    "unit, fine", [("mm", True), ("unknown", True), ("micron", False), ("meter", False)]
)
def test_another_unit_than_mm_is_refused(tmp_path, unit, fine):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    if fine:
        assert volume_files.read_volume(tmp_path / "a.nii").spacing == (1.0, 1.0, 1.0)
        return
    with pytest.raises(InputError, match=f"a.nii: the unit in the header is {unit}: save it in mm"):
        volume_files.read_volume(tmp_path / "a.nii")


def test_a_number_that_stands_for_no_unit_is_left_alone(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header["xyzt_units"] = 7
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert volume_files.read_volume(tmp_path / "a.nii").values.shape == (4, 4, 4)


def test_labels_that_are_refused(tmp_path):
    image, label = volumes.make_ball(0)
    path = volumes.save(tmp_path / "image.nii", image)

    def labels(array, affine=None):
        return volumes.save(tmp_path / "label.nii", array, affine)

    with pytest.raises(InputError, match="12 x 14 x 9 voxels.*12 x 14 x 10"):
        label_files.check_same_grid(path, labels(label[..., :9]))
    with pytest.raises(InputError, match="label.nii: the file has 2 axes .12 x 14.*all its slices"):
        label_files.check_same_grid(path, labels(label[..., 4]))
    with pytest.raises(InputError, match="label.nii: the file has 4 axes .*file of its own"):
        label_files.check_same_grid(path, labels(np.stack([label, label], -1)))
    with pytest.raises(
        InputError, match="voxels of the labels are 1 x 1.5 x 2.5 mm.*1 x 1.5 x 2 mm"
    ):
        label_files.check_same_grid(path, labels(label, np.diag([1.0, 1.5, 2.5, 1.0])))
    near, far = np.diag([1.0, 1.5, 2.0, 1.0]), np.diag([1.0, 1.5, 2.0, 1.0])
    near[0, 3], far[0, 3] = 0.05, 0.2
    label_files.check_same_grid(path, labels(label, near))
    with pytest.raises(InputError, match=r"0\.2 voxels apart \(at most 0\.1"):
        label_files.check_same_grid(path, labels(label, far))
    with pytest.raises(InputError, match="no whole numbers"):
        label_files.to_class_ids(volume_files.read_volume(labels(label * 0.5)).values, 2, "x")
    nearly = label.astype(np.float32) * np.float32(0.9999999)
    with pytest.raises(InputError, match="0, 0.9999999, 1.9999998, which are no whole numbers"):
        label_files.to_class_ids(nearly, 2, "x")
    whole = volume_files.read_volume(labels(label.astype(np.float32))).values
    assert label_files.to_class_ids(whole, 2, "x").dtype == np.uint8
    with pytest.raises(InputError, match=r"values 0, 1, 2, but .*0\.\.1"):
        label_files.to_class_ids(whole, 1, "x")
