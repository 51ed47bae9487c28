"""The benchmark of generator families: its variants are sound, and its tables on runs known by hand."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
VARIANTS = """
import generators
from configs import fewshot
from fewshotseg.training import config_check
for name in generators.VARIANTS:
    config = generators.set_fields(fewshot.get_config(), name)
    config_check.check_config(config)
    print(name, config.family.name, config.family.gan.adversarial, config.family.gan.augmented,
          config.discriminator.patchgan.num_scales)
"""
TABLES = """
import pathlib, sys
import generators_table
from absl import flags
flags.FLAGS(["tables"])
generators_table.main(["tables", sys.argv[1]])
"""


def printed(program, *arguments):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_variant_is_a_sound_configuration_of_its_own():
    lines = printed(VARIANTS)
    assert len(lines) == len(set(lines)) == 8
    assert lines[0] == "gan gan vanilla () 1"
    assert "gan_all gan hinge ('colour', 'translation', 'cutout') 2" in lines
    assert [line.split()[1] for line in lines[-3:]] == ["diffusion", "vae", "wgan"]


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def _run(root, variant, draw, dice, consistency):
    """Six cases of two methods; the one that draws is `gain` better."""
    workdir = root / "busi" / variant / f"draw_{draw}"
    methods = ["real_only", "separate"]
    config = {
        "name": "busi",
        "seed": draw,
        "methods": methods,
        "segmenter": {"name": "unet"},
        "data": {"image_size": 64},
        "train": {"num_steps": 400},
    }
    _write(workdir / "config.json", config)
    splits = {"train": ["a"] * 32, "validation": ["b"] * 8, "test/test": list("cdefgh")}
    _write(workdir / "splits.json", splits)
    for method, value in zip(methods, (0.5, dice), strict=True):
        folder = workdir / method
        _write(folder / "log.jsonl", '{"step": 400, "seconds": 1.0}\n')
        names = ("dice", "jaccard", "hd95", "sensitivity", "precision")
        cases = [
            {"case": c, "status": "ok", **dict.fromkeys(names, value + extra)}
            for c, extra in zip("cdefgh", 3 * (0.0, 0.2), strict=True)
        ]
        _write(folder / "evaluation" / "test" / "cases.json", cases)
        _write(folder / "evaluation" / "test" / "summary.json", {})
    pairs = [
        {"source": "generator", "consistency": x, "nearest_correlation": n}
        for x, n in zip(consistency, (0.5, 0.99), strict=True)
    ]
    _write(workdir / "separate" / "synthetic_pairs.json", {"pairs": pairs})


def test_tables_of_runs(tmp_path):
    for draw in (0, 1):
        _run(tmp_path, "gan", draw, 0.6, (0.8, 0.4))
        _run(tmp_path, "diffusion", draw, 0.4, (0.9, None))
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in printed(TABLES, tmp_path)]
    assert "generator: method" in lines[0]
    gains = {row[4]: row[6:8] for row in lines if len(row) > 10 and row[0] == "busi"}
    assert gains["gan: real_only"] == ["0.600", ""] and gains["gan: separate"][0] == "0.700"
    assert gains["gan: separate"][1].startswith("+10.0 (")
    assert gains["diffusion: separate"][1].startswith("-10.0 (")
    about = {row[1]: row[2:] for row in lines if len(row) == 6 and row[0] == "busi"}
    assert about == {
        "diffusion: separate": ["4", "0.90", "0.74", "50 %"],
        "gan: separate": ["4", "0.60", "0.74", "50 %"],
    }
