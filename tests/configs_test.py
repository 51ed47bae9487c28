"""Every configuration loads, is locked, builds its networks; no field is unread."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from configs import default, public
from fewshotseg.data.sources.tfds import DATASETS
from fewshotseg.methods import METHODS
from fewshotseg.training import build, config_check, stages

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")


def load(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def test_public_data_sets():
    assert public.DATASETS.keys() == DATASETS.keys()
    for name in public.DATASETS:
        config = load("public", f"{name},seed=3")
        assert config.is_locked and config.seed == 3 and config.data.tfds.name == name
        config_check.check_config(config)
    assert load("public", "busi").data.channels == 1
    assert load("public", "drive").outer.batch_size == 2
    with pytest.raises(ValueError, match="no data set 'bussi'.*busi_with_normal"):
        load("public", "bussi")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "public"])
def test_config_is_sound(name):
    config = load(name)
    config_check.check_config(config)
    assert config.is_locked
    spec = build.create_spec(config, 2)
    parts = build.create_parts(config, spec, METHODS["end2end"], "train", axis_name=None)
    image, mask = (jnp.zeros((1, *spec.image_size, n)) for n in (spec.channels, 1))

    def outputs():
        players = stages.init_family(parts, config.seed)
        segmenter = stages.init_segmenter(parts, config.seed).params
        logits = parts.networks["segmenter"].apply(segmenter, image, None)
        return logits, parts.family.draw(players, parts.theta, mask, None)

    logits, drawn = jax.eval_shape(outputs)
    assert logits.shape == mask.shape and drawn.shape == image.shape


@pytest.mark.parametrize("name", [n for n in NAMES if n != "default"])
def test_configs_are_short_and_say_how_to_run(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 45
    assert "python " in text.split('"""')[1]


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_field_is_read():
    source = "".join(p.read_text() for p in (ROOT / "fewshotseg").rglob("*.py"))
    for path in leaves(default.get_config()):
        field = path.rpartition(".")[2]
        assert re.search(rf"\b{field}\b", source), f"nothing reads {path}"


def test_every_field_that_is_read_exists():
    config = default.get_config()
    for path in (ROOT / "fewshotseg").glob("*.py"):
        text = path.read_text().replace("config.json", "")
        for chain in re.findall(r"\bconfig\.((?:[a-z_0-9]+\.)*[a-z_0-9]+)(?!\w|\()", text):
            node = config
            for field in chain.split("."):
                if field in ("source", "phantom", "folder", "tfds") or not hasattr(node, "keys"):
                    break
                assert field in node, f"{path.name} reads config.{chain}"
                node = node[field]


def test_a_mistyped_field_is_refused_with_a_suggestion():
    config = default.get_config()
    with pytest.raises(AttributeError, match="num_steps"):
        config.train.num_step = 3


def test_choices():
    config = load("demo", "method=real_only+joint,seed=3,estimator=one_step+finite_difference")
    assert config.methods == ("real_only", "joint") and config.seed == 3
    assert (config.outer.estimator, config.outer.gradient) == ("one_step", "finite_difference")
    with pytest.raises(ValueError, match="end2edn"):
        load("demo", "method=end2edn")
    with pytest.raises(ValueError, match="no choice 'sead'"):
        load("demo", "sead=3")
    assert load("demo", "runlocal").train.num_steps < load("demo").train.num_steps
