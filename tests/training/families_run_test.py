"""Every generator family as a user meets it: trained, reported, trained on, drawn to files."""

import contextlib
import csv
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from configs import demo
from fewshotseg import cli
from fewshotseg.runs import checkpoint, log

ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = {"diffusion": "generator", "vae": "generator", "wgan": "sampled"}
FIRST, LAST = 10, 15  # steps
RESUMED = "diffusion"  # trained to FIRST, then further; tracing all of it again is most of the time


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory):
    """A toy run of a family, drawn from; and what was printed."""
    family, root = request.param, tmp_path_factory.mktemp("families")
    workdir = root / family
    config = f"--config={ROOT}/tests/toy_config.py:method=real_only+end2end,generator={family}"
    train = ["run.py", f"--workdir={workdir}", config, "--config.eval_every=5"]
    stops = (FIRST, LAST) if family == RESUMED else (LAST,)
    pairs = ["--mode=synthesize", "--num=6", f"--output={root / 'pairs'}"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for stop in stops:
            cli.main([*train, f"--config.train.num_steps={stop}"])
        few = "--config.synthesize.min_consistency=0.0"
        cli.main(["run.py", f"--workdir={workdir}", *pairs, few])
    return family, workdir, root / "pairs", printed.getvalue()


def test_it_trains_moves_the_architecture_and_goes_on(run):
    family, workdir, _, printed = run
    lines = log.read_log(workdir / "end2end" / "log.jsonl")
    assert lines[-1]["step"] == LAST and FIRST in [line["step"] for line in lines]
    norms = [line["outer/hypergradient_norm"] for line in lines if "outer/loss" in line]
    assert norms and all(norm > 0 for norm in norms)
    sides = {"diffusion": "decoder", "vae": "encoder", "wgan": "decoder"}
    weights = [x[f"architecture/{sides[family]}"] for x in lines if "outer/loss" in x]
    assert np.abs(np.array(weights[-1]) - np.array(weights[0])).max() > 1e-3
    assert all(
        np.isfinite(x["generator/loss"]) for x in log.read_log(workdir / "generator/log.jsonl")
    )
    assert (f"grows from {FIRST} to {LAST}" in printed) == (family == RESUMED)
    model, _ = checkpoint.load_model(workdir / "end2end" / "checkpoints")
    assert int(model["step"]) == LAST


def test_its_pairs_are_in_the_report_one_by_one(run):
    family, workdir, _, printed = run
    found = json.loads((workdir / "end2end" / "synthetic_pairs.json").read_text())
    assert found["step"] == LAST and found["judge"].startswith("real_only")
    with (workdir / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["pairs"]) == demo.get_config("runlocal").evaluate.num_pairs
    train = json.loads((workdir / "splits.json").read_text())["train"]
    for row in rows:
        assert row["source"] == FAMILIES[family] and row["nearest_case"] in train
        assert -1 <= float(row["nearest_correlation"]) <= 1
        assert set(filter(None, row["cases"].split(";"))) <= set(train)
        assert bool(row["cases"]) == (family != "wgan")
    assert "Synthetic pairs" in printed and "near copies" in printed
    assert "Synthetic pairs, one by one" in (workdir / "report.html").read_text()
    assert list((workdir / "generator" / "samples").glob("*.png"))
    assert list((workdir / "end2end" / "samples").glob("*.png"))


def test_its_pairs_are_written(run):
    _, _, pairs, _ = run
    images, masks = (sorted((pairs / part).glob("*.png")) for part in ("images", "masks"))
    assert len(images) == len(masks) == 6
    assert np.asarray(Image.open(images[0])).shape == (16, 16, 3)
    assert set(np.unique(np.asarray(Image.open(masks[0])))) <= {0, 1}
    shown = {np.asarray(Image.open(path)).tobytes() for path in images}
    assert len(shown) == 6
