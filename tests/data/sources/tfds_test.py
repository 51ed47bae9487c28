"""Data sets by name: the command for the unprepared, atomic builds, reading, and what is imported."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fewshotseg.data.sources import tfds as datasets
from fewshotseg.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def download(tmp_path):
    """Four cases of CVC-ClinicDB."""
    folder = tmp_path / "download"
    for index in range(1, 5):
        image = np.full((6, 8, 3), 10 * index, np.uint8)
        mask = np.zeros((6, 8), np.uint8)
        mask[:index, :2] = 255
        for name, pixels in (("Original", image), ("Ground Truth", mask)):
            path = folder / "CVC-ClinicDB" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def _run(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_prepared_once_and_read(download, tmp_path, capsys):
    data_dir = tmp_path / "data"
    assert datasets.prepare("cvc_clinicdb", download, data_dir) == {"cases": 4}
    assert "Cases: cases 4" in capsys.readouterr().out
    source = datasets.TfdsSource("cvc_clinicdb", data_dir)
    assert (source.name, source.class_names) == ("cvc_clinicdb", ("polyp",))
    assert source.ids == ("1", "2", "3", "4") and source.official_splits == {}
    for case_id in ("3", "1", "4", "3"):
        case = source.load(case_id)
        assert (case.id, case.group, case.notes) == (case_id, "", ())
        assert case.image.shape == (6, 8, 3) and (case.image == 10 * int(case_id)).all()
        assert case.mask.sum() == 2 * int(case_id) and case.mask.max() == 1
    files = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    assert datasets.prepare("cvc_clinicdb", tmp_path / "gone", data_dir) == {"cases": 4}
    assert "prepared already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == files
    assert {path.name for path in data_dir.iterdir()} == {"cvc_clinicdb"}


def test_quiet(download, tmp_path, capfd):
    datasets.prepare("cvc_clinicdb", download, tmp_path / "data", progress=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match="did you mean 'kvasir_seg'"):
        datasets.TfdsSource("kvasir-seg", tmp_path)
    with pytest.raises(InputError, match="isic2018"):
        datasets.prepare("???", tmp_path, tmp_path)


def test_unprepared_names_the_command(tmp_path):
    with pytest.raises(InputError) as error:
        datasets.TfdsSource("ph2", tmp_path / "my data")
    command = datasets.prepare_command("ph2", tmp_path / "my data")
    assert str(error.value).endswith(command)
    assert "--mode=prepare" in command and f"'--config.data.tfds.data_dir={tmp_path}" in command


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_missing_or_empty_download(kind, tmp_path):
    if kind == "empty":
        (tmp_path / "download").mkdir()
    with pytest.raises(InputError, match="folder.*https://polyp.grand-challenge.org") as error:
        datasets.prepare("cvc_clinicdb", tmp_path / "download", tmp_path / "data")
    assert "\n" not in str(error.value)


def test_killed_build_is_not_a_data_set(download, tmp_path):
    code = """if True:
        import os, sys
        from fewshotseg.data.sources import tfds as datasets
        from fewshotseg.data import image_files as transforms
        read = transforms.read_image
        transforms.read_image = lambda p: os._exit(9) if p.stem == "3" else read(p)
        datasets.prepare("cvc_clinicdb", sys.argv[1], sys.argv[2], False)
    """
    data_dir = tmp_path / "data"
    assert _run(code, download, data_dir).returncode == 9
    assert list((data_dir / "cvc_clinicdb").glob("incomplete.*"))
    with pytest.raises(InputError, match="is not prepared"):
        datasets.TfdsSource("cvc_clinicdb", data_dir)
    assert datasets.prepare("cvc_clinicdb", download, data_dir, False) == {"cases": 4}
    assert not list((data_dir / "cvc_clinicdb").glob("incomplete.*"))


def test_fault_in_the_middle_of_a_build_leaves_nothing(download, tmp_path):
    (download / "CVC-ClinicDB" / "Original" / "4.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"4\.png: not a readable image") as error:
        datasets.prepare("cvc_clinicdb", download, tmp_path / "data", progress=False)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data" / "cvc_clinicdb").iterdir())


def test_damaged_data_set(download, tmp_path):
    datasets.prepare("cvc_clinicdb", download, tmp_path / "data", progress=False)
    source = datasets.TfdsSource("cvc_clinicdb", tmp_path / "data")
    with pytest.raises(InputError, match="'9'"):
        source.load("9")
    folder = tmp_path / "data" / "cvc_clinicdb" / "1.0.0"
    for path in folder.glob("*array_record*"):
        path.unlink()
    with pytest.raises(InputError, match="prepare the data set again"):
        datasets.TfdsSource("cvc_clinicdb", tmp_path / "data").load("1")
    (folder / "dataset_info.json").unlink()
    with pytest.raises(InputError, match="damaged"):
        datasets.TfdsSource("cvc_clinicdb", tmp_path / "data")


def test_no_place_to_write(download, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(InputError, match="cannot be written|damaged"):
        datasets.prepare("cvc_clinicdb", download, tmp_path / "data", progress=False)


def test_split_larger_than_the_memory_buffer_of_tfds(download, tmp_path, monkeypatch):
    from tensorflow_datasets.core import shuffle

    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 10)  # TFDS then writes by TensorFlow
    assert datasets.prepare("cvc_clinicdb", download, tmp_path / "data", False) == {"cases": 4}


def test_neither_tfds_nor_tensorflow_is_imported_in_vain(download, tmp_path):
    code = """if True:
        import sys
        from fewshotseg.data.sources import tfds as datasets
        assert "tensorflow_datasets" not in sys.modules
        datasets.prepare("cvc_clinicdb", sys.argv[1], sys.argv[2], False)
        datasets.TfdsSource("cvc_clinicdb", sys.argv[2]).load("1")
        assert "tensorflow" not in sys.modules and "apache_beam" not in sys.modules
    """
    done = _run(code, download, tmp_path / "data")
    assert done.returncode == 0, done.stderr


def test_only_plain_jpeg_and_png_are_stored_unconverted(tmp_path):
    folder = tmp_path / "download" / "CVC-ClinicDB"
    for name in ("Original", "Ground Truth"):
        (folder / name).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(pixels).save(folder / "Original" / "turned.jpg", exif=exif)
    Image.fromarray(pixels).save(folder / "Original" / "plain.jpg")
    Image.fromarray(pixels).save(folder / "Original" / "tiff.tif")
    for name, shape in (("turned", (8, 6)), ("plain", (6, 8)), ("tiff", (6, 8))):
        Image.fromarray(np.eye(*shape, dtype=np.uint8)).save(
            folder / "Ground Truth" / f"{name}.png"
        )
    datasets.prepare("cvc_clinicdb", tmp_path / "download", tmp_path / "data", progress=False)
    source = datasets.TfdsSource("cvc_clinicdb", tmp_path / "data")
    assert source.load("turned").image.shape == (8, 6, 3)
    assert source.load("turned").notes == ("EXIF rotation applied",)
    import tensorflow_datasets as tfds

    builder = datasets.builder_class("cvc_clinicdb")(data_dir=tmp_path / "data")
    records = builder.as_data_source("cases", decoders={"image": tfds.decode.SkipDecoding()})
    stored = {record["id"].decode(): record["image"] for record in records}
    assert stored["plain"] == (folder / "Original" / "plain.jpg").read_bytes()
    assert stored["turned"][1:4] == stored["tiff"][1:4] == b"PNG"
