"""What is shown for rating and what is kept of the answers; influence against a step that is taken."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reviewing
import tiny
import toy_config
from PIL import Image

from fewshotseg import cli, errors, files
from fewshotseg.genseg import losses
from fewshotseg.models import factory
from fewshotseg.runs import checkpoint
from fewshotseg.runs import ratings as store
from fewshotseg.training import build, build_pairs, build_review, feedback, review_choice


def answer(session, item, reply="accept", rater="ann", tab="t", tags=()):
    session.rate(item, reply, list(tags), rater, tab, 1200)


def kind_of(session, item):
    return session._items[item].kind


def test_sheets_mix_in_hidden_real_images_and_repeats(tmp_path):
    session = reviewing.make_session(tmp_path, num_pairs=300, num_shown=20)
    kinds, seen = [], []
    for number in range(12):
        sheet = session.sheet(number, "ann")
        assert [set(item) for item in sheet["items"]] == [{"id", "answer", "tags", "ms"}] * 20
        for item in sheet["items"]:
            answer(session, item["id"], "reject" if len(kinds) % 2 else "accept")
            kinds.append(kind_of(session, item["id"]))
            seen.append((kinds[-1], session.pair(item["id"]).name))
    share = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert share["real"] == pytest.approx(0.1, abs=0.05)
    assert share["repeat"] == pytest.approx(0.1, abs=0.05)
    fresh = [name for kind, name in seen if kind == "synthetic"]
    assert len(set(fresh)) == len(fresh)
    before = set()
    for kind, name in seen:
        assert kind != "repeat" or name in before
        before.add(name)
    found = session.sheet(0, "ann")["progress"]
    assert found["answers"] == 240 and found["repeats"] >= kinds.count("repeat")


def test_nothing_that_is_shown_gives_the_real_ones_away(tmp_path):
    session = reviewing.make_session(tmp_path, real_share=0.5)
    for item in session.sheet(None, "ann")["items"]:
        image, correlation = session.nearest(item["id"])
        shown = session.pair(item["id"])
        assert correlation < 0.999 and (image != shown.image).any()
    assert not list(tmp_path.iterdir())  # and nothing is written by looking


def test_answers_undo_corrections_and_the_pictures_that_belong_to_them(tmp_path):
    session = reviewing.make_session(tmp_path, real_share=0.0, repeat_share=0.0)
    first, second, third, *_ = [item["id"] for item in session.sheet(None, "ann")["items"]]
    answer(session, first, "reject", tags=["border"])
    answer(session, second, tab="other")
    assert session.undo("ann", "t") == {"item": first, "sheet": 0}
    assert session.undo("ann", "t") is None  # the other tab's stays
    answer(session, first, "unsure")
    right = np.zeros((reviewing.SIZE, reviewing.SIZE), np.uint8)
    right[5:9, 5:9] = 1
    session.correct(third, right, "ann", "t", 3000)
    state = {item["id"]: item["answer"] for item in session.sheet(0, "ann")["items"]}
    assert (state[first], state[second], state[third]) == ("unsure", "accept", "corrected")
    assert all(not item["answer"] for item in session.sheet(0, "bob")["items"])

    rows = store.active(store.read(session.path))
    ours = dict.fromkeys(case for row in rows for case in row["cases"])
    loaded = feedback.load(session.path, (reviewing.SIZE, reviewing.SIZE), 3, ours)
    by_item = {row["item"]: i for i, row in enumerate(loaded.rows)}
    assert len(by_item) == 3
    for item in (first, second, third):
        np.testing.assert_array_equal(loaded.images[by_item[item]], session.pair(item).image)
        np.testing.assert_array_equal(loaded.masks[by_item[item]], session.pair(item).mask)
    np.testing.assert_array_equal(loaded.corrected["mask"], right[None])
    image = loaded.corrected["image"][0]
    np.testing.assert_allclose(image, session.pair(third).image / 127.5 - 1, atol=1e-6)
    row = loaded.rows[by_item[first]]
    assert row["checkpoint"] == "c" * 16 and row["source"] == "generator" and row["ms"] == 1200
    for picture in (tmp_path / "images").iterdir():
        with Image.open(picture) as opened:
            assert picture.name.startswith("synthetic_")
            assert opened.text["Comment"].startswith("synthetic pair")


def test_the_corrected_label_of_a_hidden_real_image_is_kept_without_the_image(tmp_path):
    session = reviewing.make_session(tmp_path, real_share=0.5)
    items = [item["id"] for item in session.sheet(None, "ann")["items"]]
    item = next(i for i in items if kind_of(session, i) == "real")
    right = np.zeros((reviewing.SIZE, reviewing.SIZE), np.uint8)
    right[5:9, 5:9] = 1
    session.correct(item, right, "ann", "t", 3000)
    assert not (tmp_path / "images").exists()
    (written,) = (tmp_path / "masks").iterdir()
    with Image.open(written) as opened:
        assert "synthetic" not in f"{written.name} {opened.text['Comment']}"
        np.testing.assert_array_equal(opened, right)

    shown = session.pair(item)
    cases = {shown.cases[0]: (shown.image / 127.5 - 1, shown.mask)}
    loaded = feedback.load(session.path, (reviewing.SIZE, reviewing.SIZE), 3, cases)
    np.testing.assert_array_equal(loaded.masks, shown.mask[None])
    np.testing.assert_array_equal(loaded.corrected["mask"], right[None])
    image = loaded.corrected["image"][0]
    np.testing.assert_allclose(image, shown.image / 127.5 - 1, atol=1e-6)


def test_a_changed_mask_is_drawn_anew_behind_the_old_pair(tmp_path):
    session = reviewing.make_session(tmp_path, real_share=0.0)
    items = [item["id"] for item in session.sheet(None, "ann")["items"]]
    item = next(i for i in items if session.pair(i).number % 7 != 6)
    mask = np.zeros((reviewing.SIZE, reviewing.SIZE), np.uint8)
    mask[2:6, 2:20] = 1
    assert session.redraw(item, mask) == 0
    now = [item["id"] for item in session.sheet(0, "ann")["items"]]
    place = now.index(item) + 1
    assert len(now) == 13 and session.pair(now[place]).image[3, 3, 0] == 250
    answer(session, now[place], "reject")
    (row,) = store.active(store.read(session.path))
    assert row["kind"] == "redraw" and row["mask"] == store.hash_arrays(mask)


def test_what_is_refused(tmp_path):
    session = reviewing.make_session(tmp_path, num_pairs=15, real_share=0.3)
    items = [item["id"] for item in session.sheet(None, "ann")["items"]]
    mask = np.zeros((reviewing.SIZE, reviewing.SIZE), np.uint8)
    with pytest.raises(errors.InputError, match="answers are reject, unsure, accept"):
        answer(session, items[0], "yes")
    with pytest.raises(errors.InputError, match="tags texture"):
        answer(session, items[0], tags=["nonsense"])
    with pytest.raises(KeyError):
        answer(session, "nothing")
    with pytest.raises(errors.InputError, match="size and classes"):
        session.correct(items[0], mask[:4], "ann", "t", 1)
    with pytest.raises(errors.InputError, match="size and classes"):
        session.redraw(items[0], mask + 2)
    real = next(i for i in items if kind_of(session, i) == "real")
    with pytest.raises(errors.InputError, match="its image is a real one"):
        session.redraw(real, mask)
    with pytest.raises(errors.InputError, match="no such sheet"):
        session.sheet(2, "ann")
    session.sheet(1, "ann")
    with pytest.raises(errors.InputError, match="all pairs have been shown"):
        session.sheet(2, "ann")


def test_the_most_telling_pairs_come_first_and_unlike_ones_after_them():
    pairs = [reviewing.make_pair(i) for i in range(4)]
    place = [np.zeros(4), np.full(4, 0.1), np.full(4, 3.0), np.full(4, 3.1)]
    influence = [1.0, -0.9, 0.4, 0.38]
    pairs = [
        dataclasses.replace(pair, influence=i, described=d)
        for pair, i, d in zip(pairs, influence, place, strict=True)
    ]
    ones = np.ones(4)
    assert review_choice.choose(pairs, 3, ones, diversity=0.0) == [0, 1, 2]
    assert review_choice.choose(pairs, 3, ones, diversity=1.0) == [0, 3, 1]
    assert review_choice.choose(pairs, 2, np.array([0.0, 0.1, 0.5, 0.1]), diversity=0.0) == [2, 1]
    assert sorted(review_choice.choose(pairs, 9, ones, 0.5)) == [0, 1, 2, 3]


def test_influence_is_what_a_small_step_on_the_pair_does_to_the_validation_loss():
    with tiny.float64():
        numbers = np.random.default_rng(0)
        weights = {"w": jnp.asarray(numbers.normal(size=(1, 1))), "b": jnp.asarray([0.2])}

        def segment(weights, images, keys):
            return jnp.tanh(images) @ weights["w"] + weights["b"]

        images = jnp.asarray(numbers.uniform(-1, 1, (5, 4, 4, 1)))
        masks = jnp.asarray(numbers.random((5, 4, 4)) < 0.4, jnp.uint8)
        validation = {"image": images[:2] * 0.5, "mask": 1 - masks[:2]}
        found = review_choice.influence(segment, weights, (images, masks), validation, "dice")

        def loss(weights, images, masks):
            return losses.segmentation_loss(segment(weights, images, None), masks).mean()

        before = loss(weights, validation["image"], validation["mask"])
        for i in range(5):
            step = jax.grad(loss)(weights, images[i : i + 1], masks[i : i + 1])
            moved = tiny.along(weights, step, -1e-6)
            after = loss(moved, validation["image"], validation["mask"])
            assert found[i] == pytest.approx(float(before - after) / 1e-6, rel=1e-3, abs=1e-6)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def run(tmp_path_factory, monkeypatch_module):
    """The folder of a run of untrained networks, which compile fast."""
    config = toy_config.get_config("method=mixture_learned")
    config.pairs.sources = ("generator", "copy_paste")
    config.outer.variables = ("mixture",)
    config.feedback.pool_size, config.review.num_pairs = 24, 16
    root = tmp_path_factory.mktemp("runs") / "untrained"
    row = build_pairs.FamilyRow(tiny.paint_family, {"generator": tiny.create_painter})
    monkeypatch_module.setitem(build_pairs.FAMILIES, "gan", row)
    monkeypatch_module.setattr(factory, "create_segmenter", tiny.create_pixel_segmenter)
    experiment = build.build(config)
    files.write_json(root / "classes.json", experiment.data.source.class_names)
    files.write_json(root / "splits.json", {"train": experiment.data.split.train})
    players = experiment.pretraining().init(None).players
    state = experiment.training("mixture_learned").init(players)
    model = {
        "players": {name: value.params for name, value in state.players.items()},
        "theta": state.theta,
        "dice": np.float32(0.5),
        "step": np.int32(3),
    }
    saved = checkpoint.Checkpoints(root / "mixture_learned" / "checkpoints")
    saved.save(3, {"w": np.zeros(1)}, jax.device_get(model), {})
    saved.close()
    files.write_json(root / "config.json", json.loads(config.to_json()))
    return root, config


def test_a_run_is_rated_and_the_ratings_find_their_pairs_in_its_pool(run, tmp_path):
    """The masks that were rated are those that a training of the same cases would draw."""
    root, config = run
    session = build_review.create_session(config, root)
    assert session.describe()["redraws"] and session.size == (16, 16)
    for number in range(2):
        for i, item in enumerate(session.sheet(number, "ann")["items"]):
            answer(session, item["id"], "reject" if i % 2 else "accept")
    rows = store.active(store.read(session.path))
    assert len(rows) == 24 and {row["seed"] for row in rows} == {0}
    cases = json.loads((root / "splits.json").read_text())["train"]
    assert all(set(row["cases"]) <= set(cases) for row in rows)
    drawn = [row for row in rows if row["source"] == "generator"]
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    again = session._items[drawn[0]["item"]].id
    session.redraw(again, mask)

    listening = config.copy_and_resolve_references()
    listening.feedback.file, listening.feedback.betas = str(session.path), (1.0,)
    listening.feedback.min_ratings = 20
    experiment = build.build(listening)
    players = experiment.pretraining().init(None).players
    record = experiment.feedback("mixture_learned", players).record
    synthetic = {(r["source"], r["number"]) for r in rows if r["kind"] in ("synthetic", "repeat")}
    assert record["pool"]["rejected"] + record["pool"]["accepted"] == len(synthetic)
    assert record["pool"]["elsewhere"] == 0
    with pytest.raises(errors.InputError, match="copy_paste makes its image of real ones"):
        row = next(row for row in rows if row["source"] == "copy_paste")
        session.redraw(row["item"], mask)


def test_the_command_writes_a_table(run, tmp_path, capsys):
    root, _ = run
    store.append(root / "review" / store.FILE, {
        "id": "x", "rater": "bob", "item": "y", "kind": "real", "pair": "z", "answer": "accept",
        "tags": [], "ms": 5, "cases": ["case"],
    })  # fmt: skip
    cli.main(["run.py", "--mode=review", f"--workdir={root}", f"--output={tmp_path / 'table.csv'}"])
    assert "Ratings: " in capsys.readouterr().out
    assert "bob" in (tmp_path / "table.csv").read_text()
