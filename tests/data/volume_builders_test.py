"""The builders of volumes on small files in the official layout, with faults, and on the real extract."""

import numpy as np
import pytest
import volumes as files

from fewshotseg.data.sources import tfds as datasets
from fewshotseg.data.sources.volumes import VolumeSource
from fewshotseg.errors import InputError

FOLDERS = {"msd_hippocampus": "Task04_Hippocampus", "msd_liver": "Task03_Liver"}


@pytest.mark.parametrize("name", FOLDERS)
def test_prepared_volumes_are_those_of_the_folder(name, tmp_path):
    root = files.write_decathlon(tmp_path / "download" / FOLDERS[name], number=4, dtype=np.int16)
    counts = datasets.prepare(name, tmp_path / "download", tmp_path / "data", progress=False)
    assert counts == {"cases": 4}
    fields = {"window": (0.0, 500.0)}
    source = datasets.TfdsSource(name, tmp_path / "data", **fields)
    assert source.ids == ("ball_000", "ball_001", "ball_002", "ball_003")
    assert len(source.class_names) == 2 and source.official_splits == {}
    wanted = VolumeSource(str(root), **fields)
    for case_id in source.ids[::3]:
        case, other = source.load(case_id), wanted.load(case_id)
        np.testing.assert_array_equal(case.image, other.image)
        np.testing.assert_array_equal(case.mask, other.mask)
        np.testing.assert_array_equal(case.affine, other.affine)
        assert case.spacing == other.spacing == (2.0, 1.5, 1.0)


def test_faults_are_named_before_anything_is_written(tmp_path):
    root = files.write_decathlon(tmp_path / "download" / "Task04_Hippocampus", number=4)
    image, label = files.make_ball(0)
    files.save(root / "labelsTr" / "ball_000.nii.gz", label[:-1])
    files.save(root / "labelsTr" / "ball_001.nii.gz", label + 2)
    (root / "labelsTr" / "ball_002.nii.gz").unlink()
    with pytest.raises(InputError, match="^3 faults, and nothing was written") as error:
        datasets.prepare("msd_hippocampus", tmp_path / "download", tmp_path / "data", False)
    for words in ("11 x 14 x 10 voxels", "0..2", "ball_002.nii.gz is missing"):
        assert words in str(error.value)
    with pytest.raises(InputError, match="nothing of msd_liver was found.*http"):
        datasets.prepare("msd_liver", tmp_path / "download", tmp_path / "data", False)


def test_the_real_extract(shared_data, tmp_path):
    folder = shared_data / "msd_hippocampus"
    counts = datasets.prepare("msd_hippocampus", folder, tmp_path, progress=False)
    assert counts == {"cases": 60}
    case = datasets.TfdsSource("msd_hippocampus", tmp_path).load("hippocampus_004")
    assert set(np.unique(case.mask)) == {0, 1, 2} and case.spacing == (1.0, 1.0, 1.0)
