"""Every configuration loads, is locked, builds its networks; no field is unread."""

import importlib
import pathlib
import re

import numpy as np
import pytest
import tiny
import volumes
from ml_collections import ConfigDict
from PIL import Image

from configs import default, public
from fewshotseg.data.sources.tfds import DATASETS
from fewshotseg.methods import METHODS
from fewshotseg.models import factory
from fewshotseg.training import build, build_pairs, build_parts, config_check, estimators

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
    image, mask, logits, drawn = tiny.output_shapes(config)
    assert logits == mask and drawn == image


@pytest.mark.parametrize("name", [n for n in NAMES if n != "default"])
def test_configs_are_short_and_say_how_to_run(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 45
    assert "python " in text.split('"""')[1]


@pytest.fixture
def reads(monkeypatch):
    """Every read of a field of any configuration, as (id of its block, field)."""
    seen = set()
    getitem = ConfigDict.__getitem__

    def noting(self, key):
        seen.add((id(self), key))
        return getitem(self, key)

    monkeypatch.setattr(ConfigDict, "__getitem__", noting)

    def to_dict(self, *args, **kwargs):
        """Reads the fields of one block; that of the whole configuration reads nothing by itself."""
        values = {key: getitem(self, key) for key in self}
        if not any(isinstance(value, ConfigDict) for value in values.values()):
            seen.update((id(self), key) for key in values)
        return values

    monkeypatch.setattr(ConfigDict, "to_dict", to_dict)
    return seen


def blocks(config, prefix=""):
    """Every block of a configuration: (prefix of its fields, block)."""
    yield prefix, config
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from blocks(config[key], f"{prefix}{key}.")


def folder_of_images(root):
    for kind, pixels in (("images", (24, 24, 3)), ("masks", (24, 24))):
        (root / kind).mkdir()
        for i in range(12):
            image = np.zeros(pixels, np.uint8)
            image[4 : 10 + i % 5, 5:15] = 255
            Image.fromarray(image).save(root / kind / f"case{i}.png")


def build_all(config):
    """What a command builds of a configuration, from its data to its estimator: nothing is compiled."""
    experiment = build.build(config)
    experiment.pretraining()
    experiment.training("end2end")
    experiment.training("mixture")
    method = METHODS["end2end"]
    parts = build_parts.create_parts(config, experiment.spec, method, "train")
    build_parts.create_estimate(config, parts, method, inner_step=lambda *args: None)
    try:
        experiment.create_predictor({}, source="nothing")
    except KeyError:
        pass  # it has no weights


# Read by commands that build no experiment of them: the file that names them in full.
ELSEWHERE = {
    "compilation_cache": "commands.py", "predict.method": "commands.py",
    "predict.overlays": "commands.py", "predict.probabilities": "commands.py",
    "predict.workers": "commands.py", "predict.flips": "commands.py", "data.tfds.name": "commands.py",
    "data.tfds.data_dir": "commands.py", "diagnose.estimators": "compare_estimators.py",
    "diagnose.inner_steps": "compare_estimators.py", "diagnose.draws": "compare_estimators.py",
    "diagnose.repeats": "compare_estimators.py", "synthesize.layout": "synthesize.py",
    "synthesize.min_consistency": "synthesize.py", "synthesize.max_tries": "synthesize.py",
    "synthesize.seed": "synthesize.py", "evaluate.num_pairs": "pair_quality.py",
    "feedback.min_ratings": "build_feedback.py", "feedback.pool_size": "build_feedback.py",
    "review.num_shown": "build_review.py", "review.num_pairs": "build_review.py",
    "review.real_share": "build_review.py", "review.repeat_share": "build_review.py",
    "review.diversity": "build_review.py", "review.seed": "build_review.py",
}  # fmt: skip


def test_choices_are_those_of_the_tables():
    assert set(default.METHODS) == set(METHODS)
    assert set(default.FAMILIES) == set(build_pairs.FAMILIES)


def test_every_field_is_read(reads, tmp_path):
    """While experiments are built, for every source, estimator and segmenter."""
    folder_of_images(tmp_path)
    volumes.write_decathlon(tmp_path / "volumes", number=14)
    choices = [
        ("volumes", "unrolled", "mixed", "unet"),
        ("folder", "unrolled", "mixed", "unet"),
        ("phantom", "unrolled", "finite_difference", "unet"),
    ]
    choices += [("phantom", name, "mixed", "unet") for name in estimators.ESTIMATORS]
    choices += [("phantom", "unrolled", "mixed", name) for name in factory.SEGMENTERS]
    read, fields = set(), set()
    for number, (source, estimator, gradient, segmenter) in enumerate(choices):
        config = load("demo", f"runlocal,segmenter={segmenter}")
        config.segmenter.efficient_unet.weights = ""  # those of ImageNet may not be installed
        config.outer.estimator, config.outer.gradient = estimator, gradient
        config.family.name = tuple(build_pairs.FAMILIES)[number % len(build_pairs.FAMILIES)]
        config.data.source = source
        if source == "volumes":
            config.data.image_size = (16, 16, 16)
            config.data.fit = "tiles"
            with config.unlocked():
                del config.test_sets.shifted  # pictures
        config.data.volumes.folder = str(tmp_path / "volumes")
        config.data.folder.images_dir = str(tmp_path / "images")
        config.data.folder.masks_dir = str(tmp_path / "masks")
        names = {(id(b), key): f"{prefix}{key}" for prefix, b in blocks(config) for key in b}
        reads.clear()
        build_all(config)
        read |= {names[r] for r in reads if r in names}
        fields |= {f for f, _ in config_check.leaves(config) if not f.startswith("test_sets.")}
    unread = fields - read - ELSEWHERE.keys()
    assert not unread, f"nothing reads {sorted(unread)}"
    assert ELSEWHERE.keys() <= fields - read, "a row about no field, or about one that is read here"


@pytest.mark.parametrize("field", ELSEWHERE)
def test_what_is_read_elsewhere_is_read_by_its_whole_name(field):
    (path,) = (ROOT / "fewshotseg").rglob(ELSEWHERE[field])
    assert re.search(rf"\bconfig\.{re.escape(field)}\b", path.read_text()), field


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
