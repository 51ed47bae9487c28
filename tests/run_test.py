"""run.py as a user meets it: a whole run, kills and interrupts, prediction, and bad input.

One toy run is made by the real command; what needs a process of its own (kills, interrupts) repeats it,
and reads what it compiled. What does not is a command line given to `cli.main`.
"""

import csv
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import httpx
import jax
import numpy as np
import pytest
import toy_config
from jax import export as jax_export
from PIL import Image

from configs import demo, folder
from fewshotseg import cli, commands, errors
from fewshotseg.data.survey import Survey
from fewshotseg.results import predictor as predictors
from fewshotseg.results import trained_models
from fewshotseg.runs import checkpoint, lock
from fewshotseg.runs import log as summaries
from fewshotseg.training import build_data, config_check
from fewshotseg.training import devices as parallel

ROOT = pathlib.Path(__file__).parents[1]
METHODS = ("real_only", "joint", "end2end")
# Value and tolerance: with the toy's larger eps, other orders of additions give 1e-5 and less.
GOLDEN = {"outer/loss": (1.42596, 1e-3), "outer/hypergradient_norm": (0.0087764, 1e-2)}


def arguments(workdir, *flags):
    """Of the command that trains the toy run, after the name of the program."""
    config = f"{ROOT}/tests/toy_config.py:method={'+'.join(METHODS)}"
    return [f"--config={config}", f"--workdir={workdir}", *flags]


def command(workdir, *flags):
    return [sys.executable, str(ROOT / "run.py"), *arguments(workdir, *flags)]


def run(environment, *args):
    """What the command printed, which ended well."""
    done = subprocess.run(
        command(*args), capture_output=True, text=True, env=environment, timeout=1800
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def refused(capsys, *args):
    """The sentence with which the command ends, in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["run.py", *arguments(*args)])
    assert caught.value.code == cli.INPUT_ERROR
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    """The folder of a run that nothing disturbed, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, run(environment, workdir)


def model_of(workdir, method):
    return checkpoint.load_model(workdir / method / "checkpoints")[0]


def cases_of(workdir, method):
    return json.loads((workdir / method / "evaluation" / "test" / "cases.json").read_text())


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def wait_for_step(process, path, step):
    """Until the log has reached `step`; False if the process ended before."""
    while process.poll() is None:
        lines = summaries.read_log(path)
        if lines and lines[-1]["step"] >= step:
            return True
        time.sleep(0.02)
    return False


def test_a_run_leaves_what_it_promises(finished):
    workdir, printed = finished
    for method in METHODS:
        assert method in printed
        for test_set in ("test", "shifted"):
            folder_ = workdir / method / "evaluation" / test_set
            summary = json.loads((folder_ / "summary.json").read_text())
            assert summary["num_cases"] == 4
            with (folder_ / "cases.csv").open() as file:
                assert len(list(csv.DictReader(file))) == 4
    page = (workdir / "report.html").read_text()
    assert "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((workdir / "config.json").read_text())["name"] == "demo"
    split = json.loads((workdir / "splits.json").read_text())
    assert len(split["train"]) == 6 and len(split["validation"]) == 2
    parts = [set(split[name]) for name in ("train", "validation", "test/test")]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert (workdir / "contact_sheet.png").exists()
    assert list((workdir / "end2end" / "samples").glob("*.png"))


def test_only_end2end_moves_the_architecture(finished):
    workdir, _ = finished
    assert model_of(workdir, "joint")["theta"] == {}
    log = summaries.read_log(workdir / "end2end" / "log.jsonl")
    weights = [line["architecture/encoder"] for line in log if "architecture/encoder" in line]
    assert np.abs(np.array(weights[-1]) - np.array(weights[0])).max() > 1e-3
    norms = [line["outer/hypergradient_norm"] for line in log if "outer/hypergradient_norm" in line]
    assert len(norms) == 4 and all(norm > 0 for norm in norms)


def test_golden_outer_step(finished):
    """The first outer step. If you changed the mathematics, the networks, the augmentation or the
    phantoms on purpose, say so in the commit and put the new numbers here; if not, find out why."""
    log = summaries.read_log(finished[0] / "end2end" / "log.jsonl")
    for key, (value, tolerance) in GOLDEN.items():
        assert log[0][key] == pytest.approx(value, rel=tolerance), (
            f"{key}: read this test's docstring"
        )


def test_killed_three_times_ends_with_the_same_bits(finished, environment, tmp_path):
    workdir = tmp_path / "killed"
    for log, step in (("generator", 15), ("joint", 5), ("end2end", 15)):
        with subprocess.Popen(
            command(workdir),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            assert wait_for_step(process, workdir / log / "log.jsonl", step)
            process.send_signal(signal.SIGKILL)
    run(environment, workdir)
    for method in METHODS:
        assert_same_bits(model_of(workdir, method), model_of(finished[0], method))
        assert cases_of(workdir, method) == cases_of(finished[0], method)
    steps = [line["step"] for line in summaries.read_log(workdir / "end2end" / "log.jsonl")]
    assert steps == sorted(set(steps))


# Becomes a command for which Ctrl-C counts (SIG_DFL) or is ignored (SIG_IGN).
LAUNCH = """
import os, signal, sys
signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.parametrize(
    "of_ctrl_c, sent, code, words",
    [
        ("SIG_DFL", signal.SIGINT, 130, "stopped"),
        ("SIG_DFL", signal.SIGTERM, 143, "terminated"),
        ("SIG_IGN", signal.SIGTERM, 143, "terminated"),  # in the background of a shell script
    ],
)
def test_an_interrupt_leaves_a_model_that_predicts(
    of_ctrl_c, sent, code, words, environment, tmp_path
):
    workdir = tmp_path / "stopped"
    # So many steps that it cannot end by itself before the signal comes.
    started = command(workdir, "--config.methods=real_only", "--config.train.num_steps=1000")
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH, of_ctrl_c, *started[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert wait_for_step(process, workdir / "real_only" / "log.jsonl", 5)
        process.send_signal(sent)
        _, message = process.communicate(timeout=120)
    assert process.returncode == code
    assert f"{words}. What is trained is saved; the same command continues it" in message.decode()
    assert "Traceback" not in message.decode()
    image = np.zeros((1, 16, 16, 3), np.float32)
    probabilities = trained_models.load_predictor(workdir).predict_probabilities(image)
    assert probabilities.shape == (1, 16, 16, 1) and np.isfinite(probabilities).all()


# Several command lines in one process.
COMMANDS = """
import json, sys
from fewshotseg import cli
for arguments in json.loads(sys.argv[1]):
    cli.main(["run.py", *arguments])
"""


def test_more_steps_with_a_constant_schedule_are_steps_in_one_go(environment, tmp_path):
    """And the time they take is estimated before the first one, where compiled programs are kept."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    kept = f"--config.compilation_cache={environment['JAX_COMPILATION_CACHE_DIR']}"
    flags = ("--config.methods=real_only", "--config.train.num_steps=10", kept)
    lines = [
        arguments(once, "--config.methods=real_only"),
        arguments(twice, *flags),
        [f"--workdir={twice}", "--config.train.num_steps=20"],  # the folder says what it was
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(lines)],
        capture_output=True, text=True, env=environment, timeout=1800, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "grows from 10 to 20" in done.stdout and "20 steps in one go" in done.stdout
    assert done.stdout.count("Timing one step of everything") == 1
    assert_same_bits(model_of(twice, "real_only"), model_of(once, "real_only"))
    assert cases_of(twice, "real_only") == cases_of(once, "real_only")


def test_predict_keeps_sizes_and_reports_what_it_cannot_read(finished, capsys, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("wide.png", (50, 20)), ("tall.jpg", (31, 47))):
        Image.new("RGB", size, (180, 140, 120)).save(images / name)
    flags = ("--mode=predict", f"--input={images}")
    cli.main(["run.py", *arguments(finished[0], *flags, f"--output={tmp_path}/o")])
    sizes = {}
    for path in (tmp_path / "o" / "masks").iterdir():
        with Image.open(path) as mask:
            sizes[path.stem] = mask.size
    assert sizes == {"wide": (50, 20), "tall": (31, 47)}
    (images / "broken.png").write_bytes(b"not an image")
    assert "broken.png" in refused(capsys, finished[0], *flags, f"--output={tmp_path}/o2")
    assert len(list((tmp_path / "o2" / "masks").iterdir())) == 2


def test_what_is_exported_predicts_as_the_run(finished, tmp_path):
    output = tmp_path / "model"
    runs = f"{finished[0]},{finished[0]}/real_only"  # the mean of two of its models
    cli.main(["run.py", *arguments(runs, "--mode=export", f"--output={output}")])
    image = np.random.default_rng(0).integers(0, 256, (41, 53, 3), np.uint8)
    exported = jax_export.deserialize(bytearray((output / "model.stablehlo").read_bytes()))
    predictor = trained_models.load_ensemble(runs.split(","))
    (wanted,) = predictors.probabilities_of(predictor, [image], ["a"], 1)
    np.testing.assert_allclose(exported.call(image), wanted, atol=1e-4)
    about = (output / "model.json").read_text()
    assert [t["images"] for t in json.loads(about)["training"]] == [
        {"train": 6, "validation": 2}
    ] * 2
    assert str(finished[0].parent) not in about  # nor where it was trained


def test_synthetic_pairs_of_the_run_are_images_to_train_on(finished, tmp_path):
    """Files that are then checked as somebody's own images."""
    workdir, output = finished[0], tmp_path / "pairs"
    asked = ("--num=6", f"--output={output}", "--config.synthesize.min_consistency=0")
    mode = "--mode=synthesize", f"--workdir={workdir}", "--config.predict.method=joint"
    cli.main(["run.py", *mode, *asked])
    about = json.loads((output / "synthetic.json").read_text())
    assert about["synthetic"] is True and about["model"].startswith("joint of finished, step 20")
    places = (f"--config.data.folder.{kind}_dir={output / kind}" for kind in ("images", "masks"))
    mode = "--mode=check", f"--config={ROOT}/configs/folder.py", f"--workdir={tmp_path / 'check'}"
    cli.main(["run.py", *mode, *places])


def test_serve_answers_and_ends_with_ctrl_c(finished, environment):
    serving = command(finished[0], "--mode=serve")
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            address = next(line for line in iter(server.stdout.readline, "") if "token=" in line)
            with httpx.Client(follow_redirects=True) as client:
                base = httpx.URL(address.split()[-1])
                assert client.get(base.join("/model.json")).status_code == 403
                assert "not for diagnosis" in client.get(base).text
                about = client.get(base.join("/model.json")).json()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
    assert about["class_names"] == ["lesion"] and about["name"] == finished[0].name


def test_the_model_is_the_average_at_the_last_step(finished):
    for method in METHODS:
        log = summaries.read_log(finished[0] / method / "log.jsonl")
        dice = {line["step"]: line["validation/dice"] for line in log if "validation/dice" in line}
        model = model_of(finished[0], method)
        assert int(model["step"]) == max(dice) == 20
        assert float(model["dice"]) == pytest.approx(dice[20])


def test_evaluate_measures_again(finished, tmp_path):
    """The same numbers; with another threshold, others."""
    copy = shutil.copytree(finished[0], tmp_path / "run")
    summary = copy / "real_only" / "evaluation" / "shifted" / "summary.json"
    before = json.loads(summary.read_text())
    summary.unlink()
    for more, threshold in (([], 0.5), (["--config.evaluate.threshold=0.9"], 0.9)):
        flags = ("--mode=evaluate", "--config.methods=real_only", *more)
        cli.main(["run.py", *arguments(copy, *flags)])
        after = json.loads(summary.read_text())
        assert after["threshold"] == threshold
        if not more:
            assert after["mean"]["dice"] == before["mean"]["dice"]


def test_a_mistyped_field_is_refused_with_a_suggestion(environment, tmp_path):
    done = subprocess.run(
        command(tmp_path, "--config.train.num_step=3"),
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == cli.INPUT_ERROR and "num_steps" in done.stderr


def test_another_configuration_needs_another_folder(finished, capsys):
    assert "train.num_steps" in refused(capsys, finished[0], "--config.train.num_steps=19")


# --- Bad input, in this process: one InputError that run.py prints as one line --------------------------


class Flags:
    data_dir = input = output = coordinator = None
    minutes, num_processes, process_id = 0.0, 1, 0

    def __init__(self, workdir):
        self.workdir = str(workdir)


def write_pairs(root, number=12, size=(24, 24)):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(number):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        mask = np.zeros(size, np.uint8)
        mask[4 : 10 + i % 5, 5:15] = 255
        Image.fromarray(image).save(root / "images" / f"case{i:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"case{i:02}.png")


def folder_config(root):
    config = folder.get_config("runlocal,method=real_only")
    config.compilation_cache = ""
    config.data.folder.images_dir = str(root / "images")
    config.data.folder.masks_dir = str(root / "masks")
    return config


def remove_mask(root, config):
    (root / "masks" / "case03.png").unlink()


def resize_mask(root, config):
    Image.new("L", (10, 10), 255).save(root / "masks" / "case03.png")


def corrupt_image(root, config):
    path = root / "images" / "case03.png"
    path.write_bytes(path.read_bytes()[:60])


def empty_image(root, config):
    (root / "images" / "case03.png").write_bytes(b"")


def odd_mask_values(root, config):
    mask = np.zeros((24, 24), np.uint8)
    mask[:8], mask[8:16] = 3, 7
    for path in (root / "masks").iterdir():
        Image.fromarray(mask).save(path)


def no_foreground(root, config):
    for path in (root / "masks").iterdir():
        Image.new("L", (24, 24), 0).save(path)


def too_few(root, config):
    for i in range(3, 12):
        (root / "images" / f"case{i:02}.png").unlink()
        (root / "masks" / f"case{i:02}.png").unlink()


def same_id_twice(root, config):
    Image.open(root / "images" / "case03.png").save(root / "images" / "case03.bmp")


def missing_folder(root, config):
    config.data.folder.images_dir = str(root / "imagse")


def nan_pixels(root, config):
    pixels = np.full((24, 24), np.nan, np.float32)
    for path in list((root / "images").iterdir()):
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".tiff"))


def unknown_method(root, config):
    config.methods = ("end2edn",)


def unknown_optimizer(root, config):
    config.optim.name = "adm"


def too_many_labels(root, config):
    config.data.num_train = 500


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove_mask, "case03"),
        (resize_mask, "case03.*10"),
        (corrupt_image, "case03.png"),
        (empty_image, "case03.png"),
        (odd_mask_values, "case.*png"),
        (no_foreground, "foreground"),
        (too_few, "at least 4"),
        (same_id_twice, "case03"),
        (missing_folder, "imagse"),
        (nan_pixels, "case.*tiff"),
        (unknown_method, "end2edn"),
        (unknown_optimizer, "adm"),
        (too_many_labels, "500"),
    ],
)
def test_bad_input_gives_one_clear_sentence(spoil, words, tmp_path):
    write_pairs(tmp_path / "data")
    config = folder_config(tmp_path / "data")
    spoil(tmp_path / "data", config)
    with pytest.raises(errors.InputError, match=words) as caught:
        commands.run("train", config, Flags(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_check_lists_every_fault(tmp_path, capsys):
    write_pairs(tmp_path / "data")
    config = folder_config(tmp_path / "data")
    corrupt_image(tmp_path / "data", config)
    Image.new("L", (10, 10), 255).save(tmp_path / "data" / "masks" / "case05.png")
    with pytest.raises(errors.InputError, match="2 faults"):
        commands.run("check", config, Flags(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "case03" in printed and "case05" in printed
    assert (tmp_path / "run" / "check" / "contact_sheet.png").exists()


def test_a_folder_is_divided_without_numbers(tmp_path):
    write_pairs(tmp_path / "data", number=20)
    config = folder_config(tmp_path / "data")
    config.data.num_train = config.data.num_validation = config.data.num_test = 0
    split = build_data.create_split(config, Survey(build_data.create_source(config.data)))
    parts = [set(split.train), set(split.validation), set(split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) <= 20
    assert len(split.test) == 4 and len(split.validation) >= 2


def test_one_process_at_a_time_in_a_folder(tmp_path):
    write_pairs(tmp_path / "data")
    config = folder_config(tmp_path / "data")
    (tmp_path / "run").mkdir()
    with (
        lock.locked(tmp_path / "run"),
        pytest.raises(errors.InputError, match="is in use by process"),
    ):
        commands.run("train", config, Flags(tmp_path / "run"))


def test_a_start_that_failed_binds_nothing(tmp_path):
    write_pairs(tmp_path / "data")
    config = folder_config(tmp_path / "data")
    config.data.folder.images_dir = str(tmp_path / "imagse")
    for images in ("imagse", "imagez"):  # the second is refused for itself, not for being another
        config.data.folder.images_dir = str(tmp_path / images)
        with pytest.raises(errors.InputError, match=images):
            commands.run("train", config, Flags(tmp_path / "run"))


@pytest.mark.parametrize("mode", ["hypergradient", "evaluate"])
def test_a_misspelt_folder_is_not_trained_in(mode, tmp_path):
    with pytest.raises(errors.InputError, match="nothing has been trained in .*demoo"):
        commands.run(mode, demo.get_config("runlocal"), Flags(tmp_path / "demoo"))
    assert not (tmp_path / "demoo").exists()


def test_nonsense_is_found_before_anything_is_written(tmp_path):
    config = demo.get_config("runlocal")
    config.eval_every = 0
    for mode in commands.COMMANDS:
        with pytest.raises(errors.InputError, match="eval_every is 0"):
            commands.run(mode, config, Flags(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_unwritable_workdir(tmp_path):
    write_pairs(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="--workdir"):
        commands.run("train", folder_config(tmp_path / "data"), Flags(tmp_path / "file" / "run"))


def test_batch_size_must_fit_the_devices(monkeypatch):
    monkeypatch.setattr(parallel.jax, "device_count", lambda: 3)
    with pytest.raises(errors.InputError, match="batch_size=4.*multiple of 3"):
        config_check.check_config(demo.get_config("runlocal"))


def test_a_loss_that_is_not_finite_names_stage_and_step(tmp_path):
    config = toy_config.get_config("method=real_only")
    config.optim.learning_rate = 1e30
    with pytest.raises(errors.InputError, match=r"real_only: segmenter/.* at step \d+"):
        commands.run("train", config, Flags(tmp_path / "run"))


def test_predict_before_training(tmp_path):
    flags = Flags(tmp_path)
    flags.input, flags.output = "x.png", "out"
    with pytest.raises(errors.InputError, match="not the folder of a run"):
        commands.run("predict", demo.get_config("runlocal"), flags)
