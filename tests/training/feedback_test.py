"""Ratings in a training: the sampler, the outer loss, corrected pairs, the choice of beta, and resuming."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy_config

from fewshotseg import errors, figures, files
from fewshotseg.genseg import pair_sources
from fewshotseg.models import factory
from fewshotseg.runs import ratings as store
from fewshotseg.training import build, build_feedback, build_pairs, build_parts, feedback
from fewshotseg.training import train as train_lib

SIZE, NUMBER = 16, 24


@pytest.fixture(autouse=True, scope="module")
def pixels():
    """A segmenter of a few numbers: no test here is about networks, and most of the time is compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "create_segmenter", tiny.create_pixel_segmenter)
        yield


def make_config(path="", betas=(1.0,), **fields):
    config = toy_config.get_config("method=mixture_learned")
    config.pairs.sources = ("augmented", "colour_transfer")
    config.outer.variables = ("mixture", "colour_gain")
    config.outer.every = 2
    config.train.num_steps = 4
    config.data.num_validation = 4
    config.feedback.file, config.feedback.betas = str(path), betas
    config.feedback.pool_size, config.feedback.min_ratings = NUMBER, 20
    config.feedback.update(fields)
    return config


def _maker(config, experiment):
    method = build_pairs.resolve_method(config, "mixture_learned")
    parts = build_parts.create_parts(config, experiment.spec, method, "train")
    return build_feedback.create_maker(config, experiment.data, parts, method), parts


def _row(i, name, mask, source, number, answer, **more):
    return {
        "id": f"{i:04d}", "time": "2026-01-01T00:00:00Z", "rater": "ann", "item": f"i{i}",
        "kind": "synthetic", "pair": name, "mask": store.hash_arrays(mask), "source": source,
        "number": number, "seed": 0, "answer": answer, "tags": [], "ms": 900, **more,
    }  # fmt: skip


def write_ratings(folder, config, experiment, judge, numbers=range(NUMBER)):
    """A rating of every pair of the pool, by `judge(source, number, mask) -> answer`."""
    maker, parts = _maker(config, experiment)
    i = 0
    for source in maker.sources:
        pairs = maker.pairs(source, {}, parts.theta, np.array(numbers))
        ids = experiment.data.split.train
        for number, image, mask, made_of in zip(numbers, *pairs, strict=True):
            pixels = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
            name = store.hash_arrays(pixels, mask)
            figures.save_image(pixels, folder / "images" / f"synthetic_{name}.png")
            figures.save_image(mask, folder / "masks" / f"synthetic_{name}.png")
            cases = [ids[j] for j in made_of if j != pair_sources.NO_CASE]
            row = _row(i, name, mask, source, number, judge(source, number, mask), cases=cases)
            store.append(folder / store.FILE, row)
            i += 1
    return folder / store.FILE


def dislikes_colours(source, number, mask):
    return "reject" if source == "colour_transfer" and number % 3 else "accept"


def weights_of(choice):
    """Of the pool: as recorded, which is what its logits say."""
    weights = np.array(list(choice.record["weights"].values()))
    logits = choice.feedback.pool.logits
    expected = weights / weights.max(1, keepdims=True)
    np.testing.assert_allclose(np.exp(logits), expected, rtol=1e-6)
    return weights


@pytest.fixture(scope="module")
def experiment():
    return build.build(make_config())


@pytest.fixture(scope="module")
def path(tmp_path_factory, experiment):
    folder = tmp_path_factory.mktemp("ratings")
    return write_ratings(folder, make_config(), experiment, dislikes_colours)


@pytest.fixture(scope="module")
def choice(path):
    return build.build(make_config(path)).feedback("mixture_learned", None)


def test_what_was_rejected_is_never_drawn_and_the_rest_by_its_probability(choice, path):
    weights = weights_of(choice)
    assert weights.shape == (2, NUMBER)
    rejected = np.arange(NUMBER) % 3 > 0
    assert (weights[0] > 0).all() and (weights[1] == 0).tolist() == rejected.tolist()
    assert (weights[weights > 0] < 1).all()  # probabilities
    counts = choice.record["pool"]
    assert counts == {"rejected": 16, "accepted": 32, "elsewhere": 0}
    assert 0 <= choice.record["reward"]["auc"] <= 1 and choice.record["ratings"] == 2 * NUMBER


def test_too_few_ratings_leave_out_what_was_rejected_and_no_more(path, experiment):
    few = make_config(path, min_ratings=60)
    found = build.build(few).feedback("mixture_learned", None)
    assert found.feedback.reward is None and found.record["reward"] is None
    assert set(np.unique(weights_of(found))) == {0, 1}
    parts = _maker(few, experiment)[1]
    method = build_pairs.resolve_method(few, "mixture_learned")
    listening = build_feedback.listen(few, experiment.data, parts, method, found.feedback)
    assert listening.options == {"num_pooled": 6, "rated": False}
    assert listening.parts.terms == parts.terms  # the outer loss is as it was


def _advance(config, found=None, steps=1):
    stage = build.build(config).training("mixture_learned", None, found)
    state, step = stage.init(None), 0
    while step < steps:
        state, metrics, taken = stage.advance(state, step)
        step += taken
    return state, metrics


def test_a_training_that_listens_has_another_sampler_and_another_hypergradient(choice, path):
    """The mixture moves away from the source whose pairs were rejected."""
    plain, _ = _advance(make_config())
    listening, metrics = _advance(make_config(path), choice.feedback)
    assert "outer/rejected" in metrics
    terms = float(metrics["outer/validation_loss"]) + float(metrics["outer/rejected"])
    assert float(metrics["outer/loss"]) == pytest.approx(terms, rel=1e-5)
    moved = np.asarray(listening.theta["mixture"])
    assert (moved != np.asarray(plain.theta["mixture"])).any() and moved[0] > moved[1]


def test_the_same_file_and_seed_give_the_same_numbers(choice, path):
    again = build.build(make_config(path)).feedback("mixture_learned", None)
    for one, other in zip(choice.feedback, again.feedback, strict=True):
        leaves = [jax.tree.leaves(x) for x in (one, other)]
        for a, b in zip(*leaves, strict=True):
            if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)
    assert json.dumps(again.record) == json.dumps(choice.record)  # as text, for NaN is no NaN


def test_beta_0_is_a_training_without_ratings(choice, path, experiment):
    config = make_config(path)
    parts = _maker(config, experiment)[1]
    method = build_pairs.resolve_method(config, "mixture_learned")
    for silent in (None, choice.feedback._replace(beta=0.0)):
        found = build_feedback.listen(config, experiment.data, parts, method, silent)
        assert found.parts is parts and not found.options
        assert found.arrays == (experiment.data.train, experiment.data.validation)


def test_corrected_pairs_join_the_labelled_cases(experiment, path, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for picture in (path.parent / part).iterdir():
            (tmp_path / part / picture.name).write_bytes(picture.read_bytes())
    rows = store.read(path)
    right = np.zeros((SIZE, SIZE), np.uint8)
    right[3:9, 4:8] = 1
    image = feedback.read_pair(tmp_path, rows[0]["pair"], (SIZE, SIZE), 3)[0]
    name = store.hash_arrays(image, right)
    figures.save_image(image, tmp_path / "images" / f"synthetic_{name}.png")
    figures.save_image(right, tmp_path / "masks" / f"synthetic_{name}.png")
    for row in (*rows[1:], {**rows[0], "answer": store.CORRECTED, "label": name}):
        store.append(tmp_path / store.FILE, row)
    config = make_config(tmp_path / store.FILE)
    found = build.build(config).feedback("mixture_learned", None)
    assert found.record["corrected"] == 1
    assert weights_of(found)[0, rows[0]["number"]] == 0  # its own label was wrong
    method = build_pairs.resolve_method(config, "mixture_learned")
    parts = _maker(config, experiment)[1]
    listening = build_feedback.listen(config, experiment.data, parts, method, found.feedback)
    train = listening.arrays[0]
    assert len(train["mask"]) == len(experiment.data.train["mask"]) + 1
    np.testing.assert_array_equal(train["mask"][-1], right)
    np.testing.assert_allclose(train["image"][-1], image / 127.5 - 1, atol=1e-6)


def test_beta_is_0_unless_it_helps_on_the_cases_held_out():
    losses = {0.0: [1.0, 2.0, 3.0], 0.3: [0.9, 1.9, 2.8], 1.0: [0.8, 1.7, 2.9]}
    found = feedback.choose_beta((0.0, 1.0, 0.3), lambda beta: losses[beta])
    assert found.beta == 1.0 and found.losses == {0: 2.0, 0.3: pytest.approx(5.6 / 3), 1.0: 1.8}
    assert found.difference == pytest.approx(-0.2) and found.error == pytest.approx(0.1 / 3**0.5)
    hurts = {**losses, 0.3: [1.1, 2, 3], 1.0: [1, 2, 3.2]}
    assert feedback.choose_beta((0.0, 0.3, 1.0), lambda beta: hurts[beta]).beta == 0
    luck = {**losses, 0.3: [2.0, 2.0, 1.9], 1.0: [1, 2, 3.2]}  # better on one of three cases
    assert feedback.choose_beta((0.0, 0.3, 1.0), lambda beta: luck[beta]).beta == 0
    assert feedback.choose_beta((0.5,), None).beta == 0.5
    diverged = {**losses, 0.3: [np.nan, 2.0, 1.0]}
    with pytest.raises(errors.InputError, match="feedback.betas=0.3 diverged"):
        feedback.choose_beta((0.0, 0.3, 1.0), lambda beta: diverged[beta])


def test_trials_are_judged_on_cases_that_the_outer_loss_does_not_see(path):
    config = make_config(path, betas=(0.0, 1.0), num_steps=2)
    found = build.build(config).feedback("mixture_learned", None)
    assert set(found.record["losses"]) == {"0", "1"}
    values = found.record["losses"].values()
    assert np.isfinite(list(values)).all() and len(set(values)) == 2
    assert (found.record["beta"] == 0) == (found.feedback is None)
    assert (found.record["beta"] > 0) == (found.record["difference"] < -found.record["error"])


def test_a_run_goes_on_with_the_weights_it_began_with(path, tmp_path, capsys):
    config = make_config(path, betas=(1.0,))
    experiment = build.build(config)
    began = train_lib.weigh_ratings(experiment, "mixture_learned", tmp_path / "m")
    record = json.loads((tmp_path / "m" / "feedback.json").read_text())
    record["weights"]["augmented"][0] = 0.125  # as if the weights had come out otherwise
    files.write_json(tmp_path / "m" / "feedback.json", record)
    went_on = train_lib.weigh_ratings(experiment, "mixture_learned", tmp_path / "m")
    assert went_on.pool.logits[0, 0] == np.log(
        0.125 / np.max(record["weights"]["augmented"])
    ).astype(np.float32)
    np.testing.assert_array_equal(went_on.pool.logits[1], began.pool.logits[1])
    assert "48 ratings, accepted and rejected told apart" in capsys.readouterr().out
    record["sha256"] = "another"
    files.write_json(tmp_path / "m" / "feedback.json", record)
    with pytest.raises(errors.InputError, match="has changed since this training began"):
        train_lib.weigh_ratings(experiment, "mixture_learned", tmp_path / "m")


def test_of_ratings_of_another_run_those_of_our_cases_count_and_not_for_the_pool(path):
    other = make_config(path)
    other.seed = 1  # another split, other masks
    experiment = build.build(other)
    ours = set(experiment.data.split.train)
    found = experiment.feedback("mixture_learned", None)
    rows = [row for row in store.read(path) if {*row["cases"]} <= ours]
    assert 0 < len(rows) < 2 * NUMBER and found.record["ratings"] == len(rows)
    counts = found.record["pool"]
    assert counts["elsewhere"] > 0 and sum(counts.values()) == len(rows)


def test_corrected_pairs_of_cases_that_are_tested_on_are_left_out(path, tmp_path, experiment):
    """Their pixels are those of the test image."""
    for part in ("images", "masks"):
        shutil.copytree(path.parent / part, tmp_path / part)
    rows = store.read(path)
    foreign = {**rows[0], "cases": [experiment.data.split.test[0]], "answer": store.CORRECTED}
    foreign["label"] = rows[1]["pair"]
    for row in (foreign, *rows[1:]):
        store.append(tmp_path / store.FILE, row)
    found = build.build(make_config(tmp_path / store.FILE)).feedback("mixture_learned", None)
    assert found.record["corrected"] == 0 and found.record["ratings"] == 2 * NUMBER - 1


def test_small_objects_at_other_places_are_other_pairs():
    first, second = np.zeros((2, 96, 96), np.uint8)
    first[:4, :5], second[50:54, 50:55] = 1, 1
    assert feedback._same(first, first) and not feedback._same(first, second)
    large = np.zeros((96, 96), np.uint8)
    large[10:60, 10:60] = 1
    rounded = large.copy()
    rounded[10, 10:60] = 0
    assert feedback._same(large, rounded)


def test_what_is_refused(path, tmp_path):
    with pytest.raises(errors.InputError, match="feedback.file is .*there is no such file"):
        build.build(make_config(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(errors.InputError, match="no answer in it is about"):
        build.build(make_config(tmp_path / "empty.jsonl"))
    (tmp_path / store.FILE).write_bytes(path.read_bytes())
    with pytest.raises(errors.InputError, match="is missing: the pictures belong to the file"):
        build.build(make_config(tmp_path / store.FILE))
    smaller = make_config(path)
    smaller.data.image_size = 8
    smaller.segmenter.unet.num_levels = 1
    with pytest.raises(errors.InputError, match=r"has 16 x 16 pixels, but data.image_size"):
        build.build(smaller)
