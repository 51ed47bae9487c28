"""DICOM series in, DICOM segmentations out, with SimpleITK and plain pydicom as the other readers."""

import itertools
import warnings

import highdicom
import numpy as np
import pydicom
import pytest
import volumes
from dicom import write_series
from PIL import Image
from scipy.spatial import distance

from fewshotseg.data import dicom_files, label_files, volume_files
from fewshotseg.data.sources.volumes import VolumeSource
from fewshotseg.errors import InputError
from fewshotseg.labels import IGNORED

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its SWIG types
    import SimpleITK

SIGNS = list(itertools.product((1.0, -1.0), repeat=3))


def make_values():
    """int16 `[slices, rows, columns]`, alike in no direction.

    The bits of a slice fill whole bytes: where they do not, SimpleITK misreads the last one of a mask.
    """
    values = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 8)).astype(np.int16)
    values[3:, 1:3, 4:6] = 1500
    return values


def with_itk(folder):
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def place_in_itk(image, index):
    """mm in RAS+ of an index of the array `[slices, rows, columns]`."""
    x, y, z = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]])
    return [-x, -y, z]


def rounded(numbers):
    return tuple(round(float(number), 3) for number in numbers)


@pytest.mark.parametrize("signs", SIGNS, ids=str)
def test_a_series_and_its_segmentation_lie_where_another_library_has_them(tmp_path, signs):
    """All signs of the direction cosines, in an oblique plane: image and labels in mm, voxel by voxel."""
    angle = np.deg2rad(20.0)
    row = signs[0] * np.array([np.cos(angle), np.sin(angle), 0.0])
    column = signs[1] * np.array([-np.sin(angle) * 0.8, np.cos(angle) * 0.8, 0.6])
    step = signs[2] * 2.0 * np.cross(row, column)
    values = make_values()
    folder = write_series(tmp_path / "in", values, row, column, step)
    volume, itk = volume_files.read_volume(folder), with_itk(folder)
    assert volume.values.dtype == np.int16 and sorted(volume.spacing) == pytest.approx(
        [0.7, 0.9, 2]
    )
    pixels = SimpleITK.GetArrayFromImage(itk)
    for index in itertools.product((0, 4), (0, 5), (0, 7)):
        where = np.linalg.solve(volume.affine, [*place_in_itk(itk, index), 1.0])[:3]
        np.testing.assert_allclose(where, where.round(), atol=1e-4)
        assert volume.values[tuple(where.round().astype(int))] == pixels[index]

    mask = (volume.values == 1500).astype(np.uint8)
    label_files.write_segmentation(tmp_path / "out.dcm", mask, volume, ("thing",))
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.Modality == "SEG" and written.PatientID == "7"
    assert written.FrameOfReferenceUID == pydicom.dcmread(volume.file.paths[0]).FrameOfReferenceUID
    seen = SimpleITK.ReadImage(str(tmp_path / "out.dcm"))
    drawn, wanted = (
        np.array([place_in_itk(image, i) for i in np.argwhere(foreground)])
        for image, foreground in (
            (seen, SimpleITK.GetArrayFromImage(seen)),
            (itk, pixels == 1500),
        )
    )
    apart = distance.cdist(drawn, wanted)
    assert apart.shape == (8, 8) and max(apart.min(0).max(), apart.min(1).max()) < 1e-3  # mm
    # And by hand from the headers: a frame has the place and the directions of its slice.
    shared = written.SharedFunctionalGroupsSequence[0]
    directions = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose([float(x) for x in directions], [*row, *column], atol=1e-6)
    by_place = {}
    for path in sorted(folder.iterdir()):
        one = pydicom.dcmread(path)
        by_place[rounded(one.ImagePositionPatient)] = one.pixel_array.astype(int) - 1024
    frames = written.PerFrameFunctionalGroupsSequence
    for frame, drawn in zip(frames, written.pixel_array, strict=True):
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_array_equal(drawn, by_place[rounded(place)] == 1500)
    np.testing.assert_array_equal(
        label_files.read_labels(tmp_path / "out.dcm", volume, ("thing",)), mask
    )


def test_several_classes_are_segments_known_by_their_names(tmp_path):
    volume = volume_files.read_volume(write_series(tmp_path / "in", make_values()))
    mask = np.zeros(volume.values.shape, np.uint8)
    mask[1, :2], mask[2, 3:] = 1, 2
    for name in ("a.dcm", "b.dcm"):
        label_files.write_segmentation(tmp_path / name, mask, volume, ("one", "two"))
    first, second = (pydicom.dcmread(tmp_path / name) for name in ("a.dcm", "b.dcm"))
    assert [s.SegmentLabel for s in first.SegmentSequence] == ["one", "two"]
    assert first.SOPInstanceUID == second.SOPInstanceUID  # the same labels are the same object
    read = label_files.read_labels(tmp_path / "a.dcm", volume, ("two", "one"))
    np.testing.assert_array_equal(read, np.array([0, 2, 1], np.uint8)[mask])
    with pytest.raises(InputError, match="segments one, two, but the classes are three"):
        label_files.read_labels(tmp_path / "a.dcm", volume, ("three",))
    empty = np.zeros_like(mask)
    label_files.write_segmentation(tmp_path / "empty.dcm", empty, volume, ("one", "two"))
    assert not label_files.read_labels(tmp_path / "empty.dcm", volume, ("one", "two")).any()
    elsewhere = volume_files.read_volume(
        write_series(tmp_path / "else", make_values(), origin=(-20.0, -30.0, 9.0))
    )
    with pytest.raises(InputError, match="2.86 voxels apart|voxels apart"):
        label_files.read_labels(tmp_path / "a.dcm", elsewhere, ("one", "two"))


def refused(folder):
    with pytest.raises(InputError) as caught:
        dicom_files.read_values(dicom_files.read_header(folder))
    message = str(caught.value)
    assert str(folder) in message and message.count(". ") == 0
    return message


def test_what_is_no_volume_is_refused_with_the_tolerance(tmp_path):
    values = make_values()
    tilted = write_series(tmp_path / "tilted", values, step=(0.0, 0.3, 2.0))
    message = refused(tilted)
    assert "8.53 degrees" in message and "gantry" in message and "at most 0.1 of a voxel" in message
    gap = write_series(tmp_path / "gap", values, skip=(2,))
    message = refused(gap)
    assert "1 slice(s) are missing between 2 and 3" in message and "4 mm where 2 mm" in message
    two = write_series(tmp_path / "two", values, name="early")
    write_series(two, values, name="late", origin=(0, 0, 0))
    message = refused(two)
    assert "holds 2 series" in message and "early" in message and "late" in message
    twice = write_series(tmp_path / "twice", values)
    for path in sorted(twice.iterdir())[:2]:
        path.with_name(f"again{path.name}").write_bytes(path.read_bytes())
    assert "lie in the same place" in refused(twice)
    uneven = write_series(tmp_path / "uneven", values)
    one = pydicom.dcmread(uneven / "series_014.dcm")  # number 2
    one.ImagePositionPatient = [-20.0, -30.0, 5.0 + 4.0 + 0.3]
    one.save_as(uneven / "series_014.dcm")
    assert "unevenly, 1.7 to 2.3 mm apart, up to 0.15 of a voxel" in refused(uneven)
    one.ImagePositionPatient = [-20.0, -30.0, 5.0 + 4.0 + 0.1]  # within the tolerance
    one.save_as(uneven / "series_014.dcm")
    assert dicom_files.read_header(uneven).shape == (5, 6, 8)
    one.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    one.save_as(uneven / "series_014.dcm")
    assert "another direction" in refused(uneven)
    other = write_series(tmp_path / "other", values)
    write_series(other, values[:1, :, :5], origin=(-20.0, -30.0, 30.0), shuffled=False)
    assert "6 x 8 pixels" in refused(other) and "6 x 5" in refused(other)
    assert "make no volume" in refused(write_series(tmp_path / "single", values[:1]))
    frames = write_series(tmp_path / "frames", values[:1], NumberOfFrames=1)
    one = pydicom.dcmread(frames / "series_000.dcm")
    del one.ImagePositionPatient
    one.save_as(frames / "series_000.dcm")
    assert "many frames in one file" in refused(frames)
    damaged = write_series(tmp_path / "damaged", values)
    (damaged / "series_000.dcm").write_bytes(b"nothing of that kind")
    assert "not a readable DICOM file" in refused(damaged)
    short = write_series(tmp_path / "short", values)
    content = (short / "series_000.dcm").read_bytes()
    (short / "series_000.dcm").write_bytes(content[:-20])
    assert "truncated" in refused(short) or "decode" in refused(short)


def test_fractions_are_kept_and_other_files_are_left_alone(tmp_path):
    values = make_values()
    folder = write_series(tmp_path / "in", values, RescaleSlope=0.5, RescaleIntercept=0)
    (folder / "notes.txt").write_text("of the ward")
    volume = volume_files.read_volume(folder)
    label_files.write_segmentation(folder / "earlier.dcm", volume.values > 1000, volume, ("thing",))
    again = volume_files.read_volume(folder)
    assert again.values.dtype == np.float32
    stored = again.orientation.to_stored(again.values)
    np.testing.assert_array_equal(stored, (values.astype(np.float32) + 1024) / 2)


def test_the_layout_of_chaos_and_labels_as_nifti(tmp_path):
    values = make_values()
    mask = (values == 1500).astype(np.uint8)
    for case in ("1", "2", "10", "11"):
        place = tmp_path / "Train_Sets" / "CT" / case
        write_series(place / "DICOM_anon", values[::-1], step=(0, 0, -2.0), shuffled=False)
        (place / "Ground").mkdir()
        for i, plane in enumerate(mask[::-1]):  # in the order of the names of the files
            Image.fromarray(plane * 255).save(place / "Ground" / f"liver_GT_{i:03d}.png")
    source = VolumeSource(str(tmp_path), window=(-1000.0, 1500.0))
    assert source.class_names == ("liver",) and len(source.ids) == 4
    case = source.load("Train_Sets/CT/10")
    np.testing.assert_array_equal(case.mask > 0, case.image[..., 0] == 255)
    assert case.mask.sum() == 8 and case.spacing == pytest.approx((2, 0.7, 0.9))
    (tmp_path / "Train_Sets" / "CT" / "2" / "Ground" / "liver_GT_000.png").unlink()
    with pytest.raises(InputError, match="has 4 label slices, but .* 5 DICOM slices"):
        source.load("Train_Sets/CT/2")

    # The same series with labels as other programs write them: NIfTI in an order of their own.
    for case in "abcd":
        write_series(tmp_path / "mine" / "images" / case, values)
        affine = np.array([[-0.9, 0, 0, 20], [0, -0.7, 0, 30], [0, 0, 2.0, 5], [0, 0, 0, 1]])
        drawn = mask.transpose(2, 1, 0)
        if case == "b":  # other axes, one of them reversed
            drawn = drawn[::-1].transpose(2, 0, 1)
            affine = affine @ [[0, -1, 0, 7], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
        volumes.save(tmp_path / "mine" / "labels" / f"{case}.nii.gz", drawn, affine)
    mine = VolumeSource(str(tmp_path / "mine"), class_names=("liver",), window=(-1000.0, 1500.0))
    for case in map(mine.load, "ab"):
        np.testing.assert_array_equal(case.mask > 0, case.image[..., 0] == 255)
    write_series(tmp_path / "mine" / "images" / "c", values, spacing=(0.7, 1.0))
    with pytest.raises(
        InputError, match="voxels of the labels are 2 x 0.7 x 0.9 mm.* 2 x 0.7 x 1 mm"
    ):
        VolumeSource(str(tmp_path / "mine"), class_names=("liver",))


def test_slices_of_several_classes(tmp_path):
    values = make_values()
    ids = (values == 1500).astype(np.uint8)
    ids[:, :, -1] = 2
    place = tmp_path / "1"
    write_series(place / "DICOM_anon", values, shuffled=False)
    (place / "Ground").mkdir()
    for i, plane in enumerate(ids):
        Image.fromarray(plane).save(place / "Ground" / f"{i:03d}.png")
    organs = dict(class_names=("liver", "kidney"), minimum_cases=1)
    case = VolumeSource(str(tmp_path), **organs).load("1")
    assert {int(k): int((case.mask == k).sum()) for k in (1, 2)} == {
        k: int((ids == k).sum()) for k in (1, 2)
    }
    legend = VolumeSource(str(tmp_path), **organs, class_ids=(0, 1, 3), ignore_id=2).load("1")
    assert (legend.mask == IGNORED).sum() == (ids == 2).sum()
    with pytest.raises(InputError, match="Ground: expected a mask of one class.* name all classes"):
        VolumeSource(str(tmp_path), class_names=("liver",), minimum_cases=1).load("1")


def test_the_real_ct(shared_data):
    source = VolumeSource(str(shared_data / "chaos_ct"), window=(-160.0, 240.0), minimum_cases=1)
    (case_id,) = source.ids
    case = source.load(case_id)
    assert case.image.shape == (78, 64, 64, 1) and case.spacing == pytest.approx(
        (2, 5.8125, 5.8125)
    )
    liver = case.image[case.mask > 0]
    assert 0.02 < case.mask.mean() < 0.2 and 150 < np.median(liver) < 230  # 100 to 180 HU
    place = shared_data / "chaos_ct" / "Test_Sets" / "CT" / "3" / "DICOM_anon"
    itk, volume = with_itk(place), volume_files.read_volume(place)
    np.testing.assert_array_equal(
        volume.orientation.to_stored(volume.values), SimpleITK.GetArrayFromImage(itk)
    )


def slices_source(root, names_of_slices, names_of_labels, planes):
    """A source of one series whose files are called so, with a label of the class in some of its planes."""
    values = make_values()
    series = write_series(root / "images" / "a", values, shuffled=False)
    for i, name in enumerate(names_of_slices):
        (series / f"series_{i:03d}.dcm").rename(series / name)
    (root / "labels" / "a").mkdir(parents=True)
    for i, name in reversed([*enumerate(names_of_labels)]):
        plane = np.full(values.shape[1:], 255 * (i in planes), np.uint8)
        Image.fromarray(plane).save(root / "labels" / "a" / name)
    return VolumeSource(str(root), class_names=("liver",), minimum_cases=1)


def drawn_slices(source):
    return set(np.flatnonzero(source.load("a").mask.any(axis=(1, 2))))


def test_labels_belong_to_slices_by_name_else_in_natural_order(tmp_path):
    numbers = (1, 2, 10, 11, 12)
    cases = {
        "same": ([f"{n}.dcm" for n in numbers], [f"{n}.png" for n in numbers]),
        "reversed": ([f"{9 - n}.dcm" for n in range(5)], [f"{9 - n}.png" for n in range(5)]),
        "others": ([f"IM{n}.dcm" for n in numbers], [f"gt-{n}.png" for n in numbers]),
        "padded": ([f"{n}.dcm" for n in numbers], [f"gt_{n:03d}.png" for n in numbers]),
        "letters": ([f"{n}.dcm" for n in "abcde"], [f"{n}.png" for n in "bcdef"]),
        "uid": ([f"1.2.{n}" for n in numbers], [f"{n}.png" for n in numbers]),
    }
    for kind, (slices, labels) in cases.items():
        assert drawn_slices(slices_source(tmp_path / kind, slices, labels, {0, 1})) == {0, 1}, kind
    unclear = slices_source(
        tmp_path / "unclear", ["1.dcm", "2.dcm", "3.dcm", "4.dcm", "5.dcm"],
        ["a1.png", "a01.png", "a2.png", "a3.png", "a4.png"], {0},
    )  # fmt: skip
    with pytest.raises(
        InputError, match="whether .*a0?1.png or a0?1.png comes first: call the label"
    ):
        unclear.load("a")


def segmented(folder, names, planes=(1, 2)):
    """A series, and its segmentation: class 1 in one corner and class 2 in the other one of some slices."""
    volume = volume_files.read_volume(write_series(folder / "in", make_values()))
    mask = np.zeros(volume.values.shape, np.uint8)
    mask[list(planes), :2], mask[list(planes), 4:] = 1, 2
    label_files.write_segmentation(folder / "a.dcm", mask, volume, names)
    return volume, mask, folder / "a.dcm"


def test_names_of_segments_in_another_case_are_not_taken_by_number(tmp_path):
    volume, mask, path = segmented(tmp_path / "case", ("Spleen ", "LIVER"))
    read = label_files.read_labels(path, volume, ("liver", "spleen"))
    np.testing.assert_array_equal(read, np.array([0, 2, 1], np.uint8)[mask])
    volume, mask, path = segmented(tmp_path / "numbers", ("Segment 1", "Segment 2"))
    read = label_files.read_labels(path, volume, ("liver", "spleen"))
    np.testing.assert_array_equal(read, mask)
    volume, _, path = segmented(tmp_path / "mixed", ("kidney", "liver"))
    with pytest.raises(
        InputError, match="segments kidney, liver, but the classes are liver, spleen"
    ):
        label_files.read_labels(path, volume, ("liver", "spleen"))
    with pytest.raises(InputError, match="liver, Liver differ in upper and lower case"):
        label_files.read_labels(path, volume, ("liver", "Liver"))


@pytest.mark.parametrize("planes", [(1, 2), (3,), (0, 2, 4), (1, 4)], ids=str)
def test_segmentations_without_their_empty_frames(tmp_path, monkeypatch, planes):
    made = highdicom.seg.Segmentation
    with monkeypatch.context() as patch:
        patch.setattr(highdicom.seg, "Segmentation", lambda omit_empty_frames, **k: made(**k))
        volume, mask, path = segmented(tmp_path, ("a", "b"), planes)
    assert pydicom.dcmread(path).NumberOfFrames == 2 * len(planes)
    np.testing.assert_array_equal(label_files.read_labels(path, volume, ("a", "b")), mask)
    for name, origin in (("above", (-20.0, -30.0, 14.0)), ("between", (-20.0, -30.0, 6.0))):
        other = volume_files.read_volume(
            write_series(tmp_path / name, make_values(), origin=origin)
        )
        with pytest.raises(InputError, match=f"their image {name}"):
            label_files.read_labels(path, other, ("a", "b"))
