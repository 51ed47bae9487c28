"""run.py with three classes whose values have gaps, and pixels to ignore: from files to files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from fewshotseg import cli

NAMES = ("disc", "bar", "frame")
VALUES = np.array([0, 3, 7, 200, 255], np.uint8)  # the last: to be ignored
SIZE = 24


def make_case(number):
    """A colour picture of three objects, each of a colour of its own, and their ids; 4: to be ignored."""
    numbers = np.random.default_rng(number)
    row, column = np.indices((SIZE, SIZE))
    y, x = numbers.integers(6, 18, 2)
    ids = np.zeros((SIZE, SIZE), np.uint8)
    ids[(row - y) ** 2 + (column - x) ** 2 < 32] = 1
    ids[(y + 11) % SIZE // 6 * 6 : (y + 11) % SIZE // 6 * 6 + 4, 2:22] = 2
    ids[:, :3] = 3
    colours = np.array([(40, 40, 40), (220, 60, 60), (60, 220, 60), (60, 60, 220)])
    image = np.clip(colours[ids] + numbers.normal(0, 12, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    ids[20:, 20:] = 4
    image[20:, 20:] = (255, 255, 0)
    return image, ids


def save(folder, number):
    image, ids = make_case(number)
    for kind, pixels in (("images", image), ("masks", VALUES[ids])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"case{number:02d}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the pictures and a run of them; the arguments of commands on it."""
    root = tmp_path_factory.mktemp("classes")
    for number in range(16):
        save(root, number)
    arguments = ["run.py", f"--workdir={root / 'run'}"]
    fields = {
        "data.image_size": 16, "segmenter.unet.num_levels": 1, "discriminator.patchgan.num_levels": 1,
        "generator.pix2pix.num_levels": 2, "compilation_cache": "",
        "data.folder.images_dir": root / "images",
        "data.folder.masks_dir": root / "masks", "data.folder.class_names": NAMES,
        "data.folder.class_ids": tuple(map(int, VALUES[:4])), "data.folder.ignore_id": 255,
        "data.num_train": 8, "data.num_validation": 3, "optim.learning_rate": 0.01,
        "train.num_steps": 60, "segmenter.unet.width": 8, "train.ema_decay": 0.9,
        "pairs.sources": ("copy_paste", "generator"), "outer.variables": ("architecture", "mixture"),
    }  # fmt: skip
    config = "--config=folder:runlocal,segmenter=unet,method=real_only+mixture_learned"
    cli.main([*arguments, config, *(f"--config.{k}={v}" for k, v in fields.items())])
    return root, arguments


def test_every_class_is_learnt_and_measured(run):
    root, _ = run
    summary = json.loads((root / "run/real_only/evaluation/test/summary.json").read_text())
    assert list(summary["classes"]) == list(NAMES)
    dice = {name: found["dice"]["mean"] for name, found in summary["classes"].items()}
    assert min(dice.values()) > 0.5, dice
    rows = json.loads((root / "run/real_only/evaluation/test/cases.json").read_text())
    by_case = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row["dice"])
    means = [np.nanmean(np.array(values, float)) for values in by_case.values()]
    assert summary["mean"]["dice"]["mean"] == pytest.approx(np.mean(means))
    # What is to be ignored is in no count: 16 of 24 x 24 pixels.
    (first,) = (row for row in rows if row["case"] == rows[0]["case"] and row["class"] == "bar")
    _, ids = make_case(int(first["case"][-2:]))
    assert first["reference_size"] == (ids == 2).sum()
    learnt = (root / "run/mixture_learned/log.jsonl").read_text().splitlines()
    assert any("outer/validation_loss" in json.loads(line) for line in learnt)
    assert not (root / "run" / "threshold.json").exists()  # one threshold tells no classes apart
    page = (root / "run" / "report.html").read_text()
    assert all(name in page for name in NAMES)


def test_predictions_have_the_values_of_the_training_masks(run, capsys):
    root, arguments = run
    for number in (90, 91):
        save(root / "new", number)
    flags = (f"--input={root / 'new' / 'images'}", f"--output={root / 'out'}")
    cli.main([*arguments, "--mode=predict", *flags, "--config.predict.method=real_only"])
    assert "Masks hold 0 and 3 (disc), 7 (bar), 200 (frame)." in capsys.readouterr().out
    found = np.asarray(Image.open(root / "out" / "masks" / "case90.png"))
    assert set(np.unique(found)) <= {0, 3, 7, 200} and found.dtype == np.uint8
    _, ids = make_case(90)
    counted = ids < 4
    assert (found == VALUES[ids])[counted].mean() > 0.8
    with open(root / "out" / "areas.csv", newline="") as file:
        areas = [row for row in csv.DictReader(file) if row["file"] == "case90.png"]
    assert [row["class"] for row in areas] == list(NAMES)
    assert [int(row["area_pixels"]) for row in areas] == [(found == v).sum() for v in (3, 7, 200)]
    overlay = np.asarray(Image.open(root / "out" / "overlays" / "case90.png")).reshape(-1, 3)
    from fewshotseg.pictures import CLASS_COLOURS

    shown = set(map(tuple, overlay.tolist()))
    assert all(CLASS_COLOURS[i] in shown for i, v in enumerate((3, 7, 200)) if (found == v).any())


def test_an_exported_model_writes_them_too(run, tmp_path):
    root, arguments = run
    cli.main([*arguments, "--mode=export", f"--output={root / 'model'}"])
    about = json.loads((root / "model" / "model.json").read_text())
    assert about["class_names"] == list(NAMES) and about["mask_values"] == [0, 3, 7, 200]
    assert about["output"].startswith("float32 [height, width, 4]")


def test_synthetic_pairs_are_written_as_training_masks_are(run):
    root, arguments = run
    flags = ("--num=4", "--config.synthesize.min_consistency=0")
    cli.main([*arguments, "--mode=synthesize", f"--output={root / 'pairs'}", *flags])
    values = {
        v for p in (root / "pairs/masks").iterdir() for v in np.unique(Image.open(p)).tolist()
    }
    assert values <= {0, 3, 7, 200, 255} and {3, 200, 255} <= values
    nnunet = (f"--output={root / 'nnunet'}", "--config.synthesize.layout=nnunet")
    cli.main([*arguments, "--mode=synthesize", *flags, *nnunet])
    about = json.loads((root / "nnunet" / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "disc": 1, "bar": 2, "frame": 3, "ignore": 4}
    values = {
        v for p in (root / "nnunet/labelsTr").iterdir() for v in np.unique(Image.open(p)).tolist()
    }
    assert values <= set(range(5)) and {1, 3, 4} <= values
