"""run.py on a folder of volumes, from files to masks that lie on them; the segmenter compiles fast."""

import json

import flax.linen as nn
import jax.numpy as jnp
import nibabel
import numpy as np
import pydicom
import pytest
import volumes
from dicom import write_series

from configs import hippocampus
from fewshotseg import cli
from fewshotseg.data import label_files, volume_files
from fewshotseg.errors import InputError
from fewshotseg.models import factory
from fewshotseg.training import config_check


class Voxels(nn.Module):
    """Every voxel by itself, with the fields of a U-Net."""

    num_outputs: int
    width: int
    num_levels: int
    groups: int
    activation: str
    pool: str
    rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, keys=None):
        return nn.Dense(self.num_outputs)(nn.tanh(nn.Dense(16)(4.0 * images)))


TILES = ("--config.data.fit=tiles", "--config.data.tiles.spacing=(1.0,1.5,1.0)")


@pytest.mark.parametrize("fields", [(), TILES], ids=["squashed", "in tiles"])
def test_a_whole_run(tmp_path, monkeypatch, capsys, fields):
    monkeypatch.setitem(factory.SEGMENTERS, "unet", Voxels)
    data = volumes.write_decathlon(tmp_path / "data", number=14, shape=(20, 14, 10))
    run = ("run.py", f"--workdir={tmp_path / 'run'}")
    cli.main(
        [
            *run,
            "--config=hippocampus:runlocal,method=real_only",
            f"--config.data.volumes.folder={data}",
            "--config.data.num_validation=3",
            "--config.optim.learning_rate=0.05",
            "--config.train.num_steps=60",
            "--config.train.ema_decay=0.9",
            "--config.augment.intensity.brightness=0.0",
            "--config.augment.intensity.contrast=0.0",
            "--config.augment.intensity.gamma=0.0",
            "--config.compilation_cache=",
            *fields,
        ]
    )
    folder = tmp_path / "run" / "real_only" / "evaluation" / "test"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["unit_of_hd95"] == "mm" and summary["image_size"] == [16, 16, 16]
    assert list(summary["classes"]) == list(volumes.NAMES)
    assert summary["mean"]["dice"]["mean"] > 0.7
    assert "HD95 (mm)" in (tmp_path / "run" / "report.html").read_text()
    assert list((folder / "examples").glob("best_1_*.png"))

    # Other axes, the last of them reversed: the mask is found where the ball is.
    image, label = volumes.make_ball(99, shape=(20, 14, 10))
    affine = np.array([[0, 0, -2.0, 9], [-1.5, 0, 0, 4], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    path = volumes.save(
        tmp_path / "new" / "a.nii.gz", np.moveaxis(image, (1, 2, 0), (0, 1, 2)), affine
    )
    cli.main([*run, "--mode=predict", f"--input={path}", f"--output={tmp_path / 'out'}"])
    written = nibabel.load(tmp_path / "out" / "masks" / "a.nii.gz")
    np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)
    found, wanted = np.asarray(written.dataobj), np.moveaxis(label, (1, 2, 0), (0, 1, 2))
    assert 2 * (found * wanted > 0).sum() / ((found > 0).sum() + (wanted > 0).sum()) > 0.8

    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*run, "--mode=export", f"--output={tmp_path / 'model'}"])
    assert "export is for models of pictures" in capsys.readouterr().err


def test_what_does_not_fit_volumes_is_refused_in_one_sentence():
    def refused(**fields):
        config = hippocampus.get_config()
        config.update_from_flattened_dict(fields)
        with pytest.raises(InputError) as caught:
            config_check.check_fields(config)
        return str(caught.value)

    assert "give (depth, height, width)" in refused(**{"data.image_size": 32})
    assert "give (depth, height, width)" in refused(**{"data.image_size": (32, 32)})
    assert "give a number" in refused(**{"data.source": "folder"})
    assert "test_sets" in refused(test_folders="a=b")
    spacing = {"data.tiles.spacing": (2.0, 1.0, 1.0)}
    assert "data.fit='tiles'" in refused(**spacing)
    in_tiles = {"data.fit": "tiles"}
    assert "three zeros" in refused(**in_tiles, **{"data.tiles.spacing": (2.0, 0.0, 1.0)})
    pictures = {"data.source": "folder", "data.image_size": 32}
    assert "for volumes" in refused(**in_tiles, **spacing, **pictures)
    assert "2 axes" in refused(
        **{"data.source": "folder", "data.image_size": 32, "augment.real.flip_axes": (-3,)}
    )


def test_searched_methods_want_whole_cases():
    config = hippocampus.get_config()
    config.methods, config.data.fit = ("mixture_searched",), "tiles"
    with pytest.raises(InputError, match="data.fit .*mixture_searched judges whole cases"):
        config_check.check_config(config)


def _write_ball_series(folder, seed, labels=None):
    """A ball as a CT series from head to feet, and its label map as a DICOM segmentation beside."""
    image, _ = volumes.make_ball(seed, shape=(20, 16, 10), dtype=np.int16)
    series = write_series(folder, image, step=(0.0, 0.0, -2.0))
    if labels is not None:
        volume = volume_files.read_volume(series)
        mask = np.digitize(volume.values, (400, 800)).astype(np.uint8)
        label_files.write_segmentation(labels, mask, volume, volumes.NAMES)
    return series


def test_a_run_on_dicom_series(tmp_path, monkeypatch):
    """From folders of slices to segmentations whose headers place them on the object."""
    monkeypatch.setitem(factory.SEGMENTERS, "unet", Voxels)
    data, run = tmp_path / "data", ("run.py", f"--workdir={tmp_path / 'run'}")
    (data / "labels").mkdir(parents=True)
    for i in range(12):
        _write_ball_series(data / "images" / f"c{i}", i, data / "labels" / f"c{i}.dcm")
    fields = {
        "data.volumes.folder": data, "data.volumes.class_names": volumes.NAMES,
        "data.volumes.window": (0.0, 1200.0), "data.num_train": 6, "data.num_validation": 3,
        "optim.learning_rate": 0.05, "train.num_steps": 60, "train.ema_decay": 0.9,
        "augment.intensity.brightness": 0.0, "augment.intensity.contrast": 0.0,
        "augment.intensity.gamma": 0.0, "compilation_cache": "",
    }  # fmt: skip
    arguments = [f"--config.{k}={v}" for k, v in fields.items()]
    cli.main([*run, "--config=volumes:runlocal,method=real_only", *arguments])
    series = _write_ball_series(tmp_path / "new" / "a", 99)
    cli.main([*run, "--mode=predict", f"--input={series}", f"--output={tmp_path / 'out'}"])
    # From the headers, without this package: the plane of a slice, and those of the frames drawn on it.
    drawn, bright = {}, {}
    for one in map(pydicom.dcmread, series.iterdir()):
        place = tuple(one.ImagePositionPatient)
        drawn[place] = np.zeros(one.pixel_array.shape, bool)
        bright[place] = one.pixel_array.astype(int) - 1024 > 400
    found = pydicom.dcmread(tmp_path / "out" / "masks" / "a.dcm")
    assert [s.SegmentLabel for s in found.SegmentSequence] == list(volumes.NAMES)
    for frame, plane in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        drawn[tuple(frame.PlanePositionSequence[0].ImagePositionPatient)] |= plane > 0
    common = sum((drawn[place] & bright[place]).sum() for place in bright)
    total = sum(planes.sum() for of in (drawn, bright) for planes in of.values())
    assert 2 * common / total > 0.8
