"""Synthetic pairs as files: what they hold, that they are read back as they are, and what is refused."""

import csv
import json

import jax
import numpy as np
import pytest
import toy_config
import volumes as toy_volumes
from PIL import Image

from fewshotseg import cli, errors, files
from fewshotseg.data import canvas, volume_files
from fewshotseg.data.sources import folder as folder_source
from fewshotseg.data.sources import volumes
from fewshotseg.genseg import pair_sources
from fewshotseg.labels import PLAIN
from fewshotseg.results import metrics, synthetic_folder, trained_models
from fewshotseg.runs import checkpoint
from fewshotseg.training import build, synthesize, synthetic_pairs
from fewshotseg.types import Case

SOURCES = ("generator", "copy_paste")
LOGITS = {"mixture": np.array([1.0, 0.0], np.float32)}


@pytest.fixture(scope="module")
def config():
    config = toy_config.get_config("method=real_only+mixture_learned")
    config.pairs.sources = SOURCES
    config.outer.variables = ("mixture",)
    config.synthesize.min_consistency = 0.0
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The folder of a run of untrained networks, whose mixture has moved."""
    root = tmp_path_factory.mktemp("runs") / "untrained"
    experiment = build.build(config)
    files.write_json(root / "classes.json", experiment.data.source.class_names)
    files.write_json(root / "splits.json", {"train": experiment.data.split.train})
    players = experiment.pretraining().init(None).players
    for name in config.methods:
        drawn = players if name == "mixture_learned" else None
        state = experiment.training(name).init(drawn)
        model = {
            "players": {player: value.params for player, value in state.players.items()},
            "theta": LOGITS if drawn else {},
            "dice": np.float32(0.5),
            "step": np.int32(3),
        }
        saved = checkpoint.Checkpoints(root / name / "checkpoints")
        saved.save(3, {"w": np.zeros(1)}, jax.device_get(model), {})
        saved.close()
    files.write_json(root / "config.json", json.loads(config.to_json()))
    return root


@pytest.fixture(scope="module")
def written(config, run, tmp_path_factory):
    """Seven pairs of it."""
    output = tmp_path_factory.mktemp("pairs") / "folder"
    return output, synthesize.synthesize(config, run, output, 7)


def manifest_of(output):
    with (output / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_sources_have_the_shares_that_the_run_found(written):
    output, about = written
    share = 4 * np.tanh(LOGITS["mixture"] / 4)
    share = np.exp(share) / np.exp(share).sum()
    found = [about["sources"][source]["share"] for source in SOURCES]
    np.testing.assert_allclose(found, share, rtol=1e-5)
    names = [row["source"] for row in manifest_of(output)]
    assert names.count("generator") == 5 and names[:2] == list(SOURCES)  # 7 * 0.73 = 5.1


def test_the_folder_is_read_back_and_judged_as_the_manifest_says(written, run, config):
    output, about = written
    source = folder_source.FolderSource(output / "images", output / "masks", ("lesion",))
    assert source.ids == tuple(f"synthetic_{i:06d}" for i in range(1, 8))
    judge = trained_models.load_predictor(run, "real_only")
    train = json.loads((run / "splits.json").read_text())["train"]
    for row, case in zip(manifest_of(output), map(source.load, source.ids), strict=True):
        assert row["file"] == f"images/{case.id}.png" and case.image.shape == (16, 16, 3)
        image = canvas.to_network_image(case.image, 16, 3)[None]
        found = canvas.probabilities_to_mask(judge.predict_probabilities(image)[0])
        (measured,) = metrics.case_metrics(found, case.mask, 2)
        assert float(row["consistency"]) == pytest.approx(measured["dice"], abs=1e-4)
        cases = row["cases"].split(";")
        assert len(cases) == (2 if row["source"] == "copy_paste" else 1) and set(cases) <= set(
            train
        )
        assert row["nearest_case"] in train and -1 <= float(row["nearest_correlation"]) <= 1
        with Image.open(output / row["file"]) as picture:
            assert picture.text["Comment"].startswith("synthetic pair")
    assert about["synthetic"] is True and about["judge"] == "real_only of this run"
    assert json.loads((output / "synthetic.json").read_text())["num"] == 7
    assert (output / "contact_sheet.png").exists()


def test_the_same_seed_gives_the_same_pairs_in_the_layout_of_nnunet(config, run, written, tmp_path):
    config = config.copy_and_resolve_references()
    config.synthesize.layout = "nnunet"
    synthesize.synthesize(config, run, tmp_path / "pairs", 7)
    for i in range(1, 8):
        name = f"synthetic_{i:06d}"
        image, mask = (
            np.asarray(Image.open(written[0] / d / f"{name}.png")) for d in ("images", "masks")
        )
        ours = tmp_path / "pairs"
        np.testing.assert_array_equal(Image.open(ours / "imagesTr" / f"{name}_0000.png"), image)
        np.testing.assert_array_equal(Image.open(ours / "labelsTr" / f"{name}.png"), mask)
    content = json.loads((tmp_path / "pairs" / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert content["labels"] == {"background": 0, "lesion": 1}
    assert content["numTraining"] == 7 and content["file_ending"] == ".png"


def test_too_few_consistent_pairs_leave_nothing(config, run, tmp_path):
    config = config.copy_and_resolve_references()
    config.synthesize.min_consistency, config.synthesize.max_tries = 1.0, 1
    with pytest.raises(errors.InputError, match="of 4 pairs of generator, only 0 of the 2 wanted"):
        synthesize.synthesize(config, run, tmp_path / "pairs", 3)
    assert not list(tmp_path.iterdir())


def test_what_is_refused(config, run, written, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run.py", "--mode=synthesize", f"--workdir={run}", f"--output={tmp_path / 'a'}"])
    assert caught.value.code == cli.INPUT_ERROR and "--num is 0" in capsys.readouterr().err
    with pytest.raises(errors.InputError, match="holds files already"):
        synthesize.synthesize(config, run, written[0], 2)
    other = tmp_path / "other"
    other.mkdir()
    for part in ("config.json", "classes.json", "real_only", "mixture_learned"):
        (other / part).symlink_to(run / part)
    files.write_json(other / "splits.json", {"train": ["another"]})
    with pytest.raises(errors.InputError, match="has other training cases"):
        synthesize.synthesize(config, other, tmp_path / "b", 2)


def test_the_last_method_that_makes_pairs_counts_or_the_one_that_is_named():
    config = toy_config.get_config("method=copy_paste+end2end+real_only")
    choose = synthesize.choose_method
    assert choose(config, ["real_only", "copy_paste", "end2end"]) == "end2end"
    assert choose(config, ["real_only", "copy_paste"]) == "copy_paste"
    with pytest.raises(errors.InputError, match="no trained method of this run makes synthetic"):
        choose(config, ["real_only"])
    config.predict.method = "copy_paste"
    assert choose(config, ["real_only", "copy_paste", "end2end"]) == "copy_paste"
    with pytest.raises(errors.InputError, match="not trained in this run: name one of end2end"):
        choose(config, ["real_only", "end2end"])
    config.predict.method = "real_only"
    with pytest.raises(errors.InputError, match="makes no synthetic pairs: name one of copy_paste"):
        choose(config, ["real_only", "copy_paste"])


def test_a_run_in_tiles_is_refused(tmp_path):
    config = toy_config.get_config()
    config.data.fit = "tiles"
    with pytest.raises(
        errors.InputError, match="data.fit is 'tiles': synthesize writes pairs of whole"
    ):
        synthesize.synthesize(config, tmp_path / "run", tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def test_every_beginning_has_the_shares():
    shares = [0.5, 0.3, 0.2, 0.0]
    order = synthetic_pairs.interleave(shares, 40)
    for length in range(1, 41):
        counts = np.bincount(order[:length], minlength=4)
        assert np.abs(counts - length * np.array(shares)).max() < 1
    assert np.bincount(order, minlength=4).tolist() == [20, 12, 8, 0]


def test_pairs_are_kept_that_agree_or_have_nothing_to_disagree_about():
    scores = {0: [0.9, 0.2, np.nan], 1: [0.1, 0.5, 0.6]}

    def make(number):
        images = np.full((3, 2, 2, 1), number - 0.5, np.float32)
        return pair_sources.Pairs(images, np.ones((3, 2, 2), int), np.array([[7, -1]] * 3))

    def judge(images, masks):
        return scores[int(images.max() > 127)]

    options = dict(judge=judge, least=0.5, max_tries=2, what="toys")
    found = synthetic_pairs.fill(make, 3, **options)
    assert [(p.draw, p.example) for p in found.pairs] == [(0, 0), (0, 2), (1, 1)]
    assert found.tried == 6 and found.pairs[0].cases == (7,)
    assert found.pairs[0].image.dtype == np.uint8 and (found.pairs[0].image == 64).all()
    with pytest.raises(errors.InputError, match=r"of 6 pairs of toys, only 1 .*\(median: 0.50\)"):
        scores[0] = [0.5, 0.5, 0.5]
        scores[1] = [0.5, 0.5, 0.9]
        synthetic_pairs.fill(make, 3, **{**options, "least": 0.8})
    assert synthetic_pairs.fill(make, 4, **{**options, "judge": None}).tried == 6


def test_volumes_are_read_back_where_they_lay(tmp_path):
    affine = np.array([[0, 0, -2.0, 30], [0, -1.5, 0, 20], [3.0, 0, 0, -10], [0, 0, 0, 1]])
    squashed = canvas.to_network_affine(affine, (12, 14, 10), (6, 7, 20))
    for corner in (np.array([-0.5, -0.5, -0.5, 1]), np.array([5.5, 6.5, 19.5, 1])):
        theirs = (corner[:3] + 0.5) * (2, 2, 0.5) - 0.5
        np.testing.assert_allclose(squashed @ corner, affine @ np.array([*theirs, 1.0]))
    ball, labels = toy_volumes.make_ball(0, (6, 7, 20))
    pixels = np.rint(np.clip(ball, 0, 255)).astype(np.uint8)
    for number in range(1, 6):
        name = synthetic_folder.name_of(number)
        args = name, pixels[..., None], labels.astype(np.uint8), "synthetic", squashed
        synthetic_folder.write_pair(tmp_path, "nnunet", *args, PLAIN, len(toy_volumes.NAMES))
    shown = Case("1", pixels[..., None], labels.astype(np.uint8), spacing=(3.0, 1.5, 2.0))
    about = {"classes": toy_volumes.NAMES, "channels": 1, "num_axes": 3, "has_ignored": False}
    synthetic_folder.write_about(tmp_path, "nnunet", [{"file": "x"}] * 5, [shown], about)
    source = volumes.VolumeSource(tmp_path)
    assert source.class_names == toy_volumes.NAMES and len(source.ids) == 5
    case = source.load("synthetic_000003")
    np.testing.assert_array_equal(case.mask, labels)
    np.testing.assert_allclose(case.affine, squashed)
    stored = volume_files.read_volume(tmp_path / "imagesTr" / "synthetic_000003_0000.nii.gz")
    np.testing.assert_array_equal(stored.values, pixels)
