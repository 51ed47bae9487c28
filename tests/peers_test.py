"""The benchmark against other libraries, without them: budget, names of weights, cases, scores, rows."""

import csv
import gzip
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fewshotseg.models import efficientnet_lite, weights

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def trainer():
    spec = importlib.util.spec_from_file_location("peers_train", FOLDER / "peers_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_schedule_fits_into_the_budget(trainer):
    """Steps of 7 s in one minute: nine begin, at 0, 7, ..., 56 s."""
    now = [100.0]
    budget = trainer.Budget(1.0, clock=lambda: now[0])
    shares = []

    def step(share):
        shares.append(share)
        now[0] += 7

    assert trainer.train(budget, step, lambda share: share) == 9
    np.testing.assert_allclose(shares, np.arange(9) * 7 / 60)
    assert budget.share() == pytest.approx(63 / 60)


def test_schedules_end_at_zero(trainer):
    assert trainer.cosine(0.0) == 0 and trainer.cosine(1.0) == pytest.approx(0)
    assert trainer.cosine(0.05) == 1 and trainer.cosine(0.525) == pytest.approx(0.5)
    assert trainer.polynomial(0.0) == 1 and trainer.polynomial(1.0) == 0


def test_batches_are_whole_and_take_every_image_once(trainer):
    drawn = trainer.batches(10, 4, np.random.default_rng(0))
    first = np.concatenate([next(drawn), next(drawn)])
    assert len(first) == 8 and len(set(first)) == 8  # two are left over
    assert len(next(drawn)) == 4  # of the next round
    assert len(next(trainer.batches(3, 4, np.random.default_rng(0)))) == 3


def test_every_weight_of_the_release_has_its_place(trainer):
    """All tensors but the classifier's, none twice; and a block's by the shapes that its place asks for."""
    tensors = weights.read_release(efficientnet_lite.RELEASE, "")
    names = trainer.release_names()
    left = set(tensors) - set(names.values())
    assert len(set(names.values())) == len(names) and set(names.values()) <= set(tensors)
    assert left == set(efficientnet_lite.HEAD)
    assert all(name.startswith(trainer.HEAD) for name in left)
    # Block 3 is the first of the third stage: 24 to 40 channels, six times as many between, 5 x 5.
    assert names["blocks.2.0.conv_pwl.weight"] == "_blocks.3._project_conv.weight"
    assert (
        names["blocks.5.3.bn2.bias"] == "_blocks.14._bn1.bias"
    )  # 1 + 2 + 2 + 3 + 3 blocks before 5.0
    shapes = {part: tensors[names[f"blocks.2.0.{part}.weight"]].shape for part in
              ("conv_pw", "conv_dw", "conv_pwl", "bn3")}  # fmt: skip
    assert shapes == {
        "conv_pw": (144, 24, 1, 1), "conv_dw": (144, 1, 5, 5), "conv_pwl": (40, 144, 1, 1), "bn3": (40,),
    }  # fmt: skip
    assert tensors[names["blocks.0.0.conv_pw.weight"]].shape == (16, 32, 1, 1)


STUB = """
import json, pathlib, sys
import numpy as np
assert sys.argv[5:] == ["--cpu_minutes=0.5", "--seed=3"], sys.argv
cases, folder = np.load(sys.argv[3]), pathlib.Path(sys.argv[4])
assert "test_masks" not in cases.files
assert cases["train_images"].shape == (4, 8, 8, 1) and cases["train_masks"].max() == 1
# What is bright is foreground; of the tests, one is called empty.
found = {p: (cases[p + "_images"][..., 0] > 127).astype(np.float32) for p in ("validation", "test")}
found["test"][1] = 0
np.savez(folder / "predictions.npz", **found)
log = {"steps": 12, "cpu_seconds": 30.1, "packages": {"stub": "1.0"}}
(folder / "log.json").write_text(json.dumps(log))
"""


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has drawn its split: bright, upright rectangles, 16 px, seen at 8."""
    rng, ids = np.random.default_rng(0), [f"case{i}" for i in range(8)]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for case in ids:
        row, column = 2 * rng.integers(0, 4, 2)
        mask = np.zeros((16, 16), np.uint8)
        mask[row : row + 8, column : column + 4] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{case}.png")
        Image.fromarray(mask // 255 * 150 + 50).save(tmp_path / "images" / f"{case}.png")
    block = dict(
        name="toy", images_dir=str(tmp_path / "images"), masks_dir=str(tmp_path / "masks"),
        pairs_csv="", mask_pattern="", class_names=["x"], include="", group_pattern="",
    )  # fmt: skip
    data = {"source": "folder", "folder": block, "image_size": 8, "channels": 1}
    splits = {"train": ids[:4], "validation": ids[4:6], "test/test": ids[6:]}
    splits["clusters"] = {"test": {"case6": 5}}
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"name": "toy", "seed": 3, "data": data}))
    (workdir / "splits.json").write_text(json.dumps(splits))
    return workdir


def _program(*arguments):
    command = [sys.executable, str(FOLDER / "peers.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_peer_gets_no_test_masks_and_is_measured_at_the_original_size(run, tmp_path):
    stub, output = tmp_path / "stub.py", tmp_path / "out"
    stub.write_text(f"#!{sys.executable}\n{STUB}")
    stub.chmod(0o755)
    settings = (run, f"--output={output}", f"--python={stub}", "--cpu_minutes=0.5")
    done = _program(*settings, "--peers=monai")
    assert done.returncode == 0, done.stderr
    with gzip.open(output / "peers_cases.csv.gz", "rt") as file:
        first, second = csv.DictReader(file)
    assert (first["case"], first["unit"], first["draw"], first["labels"]) == (
        "case6",
        "5",
        "3",
        "6",
    )
    assert (first["segmenter"], first["steps"]) == ("monai BasicUNet", "0.5 CPU-min")
    assert float(first["dice"]) > 0.9  # edges lie on even pixels: but for corners, nothing is lost
    assert float(second["dice"]) == 0 and float(second["hd95"]) == 22.6  # 16 px along the diagonal
    with (output / "peers_runs.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["seconds"], row["steps_done"], row["packages"]) == ("30.1", "12", "stub 1.0")
    stub.write_text(f"#!{sys.executable}\nraise SystemExit(7)")
    done = _program(*settings, "--peers=monai,nnunet")  # the first is done and does not run again
    assert done.returncode == 1
    assert re.search(r"nnunet ended with 7: see .*nnunet_0.5min/output.txt", done.stderr)
    done = _program(*settings, "--peers=mona")
    assert "'mona': use some of monai, smp, nnunet" in done.stderr
