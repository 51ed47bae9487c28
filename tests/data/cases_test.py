"""What is made of a configuration, where no other test looks."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import default, demo
from fewshotseg.data import cases
from fewshotseg.data.sources.phantom import PhantomSource
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError
from fewshotseg.training import build_data
from fewshotseg.types import Case


def test_test_cases_are_spread_over_the_sorted_ids():
    ids = tuple(f"{kind}/{i}" for kind in ("benign", "malignant", "normal") for i in range(4))
    assert cases.spread(ids, 3) == ("benign/0", "malignant/0", "normal/0")
    assert cases.spread(ids, 5) == (
        "benign/0", "benign/2", "malignant/0", "malignant/3", "normal/1"
    )  # fmt: skip
    assert cases.spread(ids, 12) == cases.spread(ids, 99) == ids


def test_a_split_has_at_most_so_many_test_cases():
    config = demo.get_config("runlocal")
    survey = Survey(build_data.create_source(config.data))
    every = build_data.create_split(_without_limit(config), survey)
    few = build_data.create_split(config, survey)
    assert len(few.test) == config.data.num_test == 4 < len(every.test)
    assert few.test == cases.spread(every.test, 4) != every.test[:4]
    assert few.train == every.train and few.validation == every.validation
    assert few.clusters["test"].keys() == set(few.test)
    assert few.clusters["shifted"] == every.clusters["shifted"]


def _without_limit(config):
    config = config.copy_and_resolve_references()
    config.data.num_test = 0
    return config


def _pairs(folder, number, kind="{}.png", mask="{}_mask.png"):
    for index in range(number):
        for name, pixels in ((kind, 9 * index), (mask, 255)):
            path = folder / name.format(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 9), pixels, np.uint8)).save(path)


def test_sources_are_rows():
    source = cases.create_source("phantom", {"num_cases": 3, "style": "ultrasound"})
    assert len(source.ids) == 3
    with pytest.raises(InputError, match="'files': use one of phantom, folder, tfds"):
        cases.create_source("files", {})
    fields = default.source_config().folder.to_dict()
    with pytest.raises(InputError, match="data.folder.images_dir is empty"):
        cases.create_source("folder", fields)


def test_a_new_source_is_one_row(monkeypatch):
    toy = PhantomSource(num_cases=20, image_size=16)
    monkeypatch.setitem(cases.SOURCES, "toy", lambda fields, strict: toy)
    config = demo.get_config("runlocal")
    config.data.source = "toy"
    assert build_data.create_data(config).source is toy


def test_further_test_sets_from_one_line(tmp_path):
    _pairs(tmp_path / "a", 3)
    _pairs(tmp_path / "b", 2, "images/{}.png", "drawn/{}.png")
    (tmp_path / "c.csv").write_text("image,mask\na/1.png,a/1_mask.png\n")
    line = f"one={tmp_path}/a,two={tmp_path}/b/images:{tmp_path}/b/drawn,three={tmp_path}/c.csv"
    config = demo.get_config("runlocal")
    config.test_folders = line
    sources = build_data.create_test_sources(config)
    assert {name: len(source.ids) for name, source in sources.items()} == {
        "shifted": 4, "one": 3, "two": 2, "three": 1
    }  # fmt: skip
    assert sources["two"].class_names == ("foreground",) and sources["two"].name == "two"
    for wrong in ("a", "a=", "a b=x", f"one={tmp_path}/a,one={tmp_path}/a"):
        with pytest.raises(InputError, match="test_folders has"):
            cases.create_test_folders(wrong, ("lesion",))
    config.test_folders = line.replace("one", "shifted")
    with pytest.raises(InputError, match="both have 'shifted'"):
        build_data.create_test_sources(config)


class _Fundus:
    """Photographs of one kind: bright discs that differ in detail alone."""

    name, class_names, official_splits = "fundus", ("vessel",), {}
    ids = tuple("abcdefghij")

    def load(self, case_id):
        rng, grid = np.random.default_rng(ord(case_id)), np.indices((48, 48)) - 24
        disc = (np.hypot(*grid) < 20)[..., None]
        image = (disc * (150 + rng.normal(0, 12, (48, 48, 3)))).clip(0, 255).astype(np.uint8)
        return Case(case_id, image, disc[..., 0].astype(np.uint8))


def test_pictures_that_all_look_alike_can_be_told_apart():
    draw = {"num_train": 4, "num_validation": 2, "seed": 0}
    with pytest.raises(InputError, match="one set of look-alikes alone has 10 of all 10 cases"):
        cases.create_split(Survey(_Fundus()), **draw)
    split = cases.create_split(Survey(_Fundus()), **draw, look_alike=1.0)
    assert len(split.train) == 4 and len(split.test) == 2


def test_lists_that_leave_no_case_to_validate_are_refused(tmp_path):
    _pairs(tmp_path / "a", 4)
    source = cases.create_test_folders(f"mine={tmp_path / 'a'}", ("lesion",), "")["mine"]
    lists = tmp_path / "lists.json"
    first, second, *_, last = source.ids
    lists.write_text(f'{{"train": ["{first}", "{second}"], "validation": [], "test": ["{last}"]}}')
    draw = {"num_train": 2, "num_validation": 1, "seed": 0, "split_file": str(lists)}
    with pytest.raises(InputError, match="leaves no case to validate: .*data.validate='none'"):
        cases.create_split(Survey(source), **draw)
    split = cases.create_split(Survey(source), validate="none", **draw)
    assert split.train == (first, second) and split.test == (last,)


def test_without_numbers_all_that_is_listed_is_taken(tmp_path):
    _pairs(tmp_path / "a", 6)
    source = cases.create_test_folders(f"mine={tmp_path / 'a'}", ("lesion",), "")["mine"]
    lists, ids = tmp_path / "lists.json", source.ids
    parts = {"train": ids[:2], "validation": ids[2:3], "test": ids[4:]}
    lists.write_text(json.dumps(parts))
    draw = {"num_train": 0, "num_validation": 0, "seed": 0, "split_file": str(lists)}
    split = cases.create_split(Survey(source), **draw)
    assert (split.train, split.validation, split.test) == tuple(parts.values())
    lists.write_text(json.dumps({"pool": ids[:4], "test": ids[4:]}))
    with pytest.raises(InputError, match="give numbers, or list both"):
        cases.create_split(Survey(source), **draw)
