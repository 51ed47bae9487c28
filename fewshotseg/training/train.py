"""Training and evaluating all methods of an experiment."""

import dataclasses
import pathlib

import jax

from fewshotseg import figures, files
from fewshotseg.data import cases, check, split_files
from fewshotseg.methods import METHODS
from fewshotseg.results import calibration, evaluate
from fewshotseg.results.predictor import segmenter_of
from fewshotseg.training import devices, loop, timing
from fewshotseg.training.build import Experiment
from fewshotseg.training.recorder import Recorder
from fewshotseg.training.stages import Stage


def train_and_evaluate(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains every method of an experiment and evaluates it on every test set.

    Methods that need no generator come first, so that there is soon a model that predicts. Killed at any
    moment and called again with the same arguments, it goes on from the last checkpoint and ends with the
    same numbers, bit for bit. Of several processes, the first writes.

    Args:
      experiment: from `build.build`.
      workdir: of the run, which exists.

    Raises:
      InputError: a full disk, or a loss that is not finite.
    """
    data = experiment.data
    if devices.is_main():
        describe(data, workdir)
        for notice in experiment.notices:
            print(notice, flush=True)
    players = None
    for name in sorted(experiment.methods, key=lambda name: METHODS[name].draws):
        folder = workdir / name
        if evaluate.is_evaluated(folder, data.test_sets):
            continue
        if METHODS[name].draws and players is None:
            stage = experiment.pretraining()
            players = run_stage(experiment, stage, workdir / stage.name)[0].players
        stage = experiment.training(name)
        _, model = run_stage(experiment, stage, folder, players if METHODS[name].draws else None)
        if devices.is_main():
            weights, origin = segmenter_of(model)
            images, masks = (data.validation[key] for key in ("image", "mask"))
            found = calibration.fit(stage.segment(weights, images), masks)
            calibration.write(found, folder, int(model["step"]))
            predictor = experiment.create_predictor(
                weights, source=f"{name}, {origin}", temperature=found.temperature
            )
            settings = dataclasses.asdict(experiment.evaluation)
            evaluate.evaluate_model(predictor, data.test_sets, folder, **settings)
        # Programs of finished methods are of no more use, and a process may only hold so many: the
        # 65,530 memory maps that Linux allows are used up after a few runs.
        jax.clear_caches()


def time_stages(experiment: Experiment) -> list[timing.Timing]:
    """Compiles and times every stage of an experiment on throw-away states; nothing is kept of it.

    The compiled programs go into the compilation cache, from where the training takes them.
    """
    timings, players = [], None
    if any(METHODS[name].draws for name in experiment.methods):
        stage = experiment.pretraining()
        timings.append(timing.measure(stage, None))
        players = stage.init(None).players
    for name in experiment.methods:
        method_players = players if METHODS[name].draws else None
        timings.append(timing.measure(experiment.training(name), method_players))
        jax.clear_caches()
    return timings


def run_stage(experiment: Experiment, stage: Stage, folder: pathlib.Path, players=None):
    """Runs or resumes a stage: the state at its end, and the model.

    Args:
      experiment: the objects of the run.
      stage: from the experiment.
      folder: of the stage.
      players: those of the generator, trained; None where nothing is drawn.
    """
    recorder = Recorder(experiment, stage, stage.init(players), folder)
    try:
        state = loop.fit(
            recorder.state,
            recorder.announced(stage.advance),
            num_steps=stage.num_steps,
            step=recorder.step,
            hooks=recorder.hooks,
            save=recorder.save,
        )
    finally:
        recorder.close()
    return state, recorder.model


def describe(data: cases.Data, workdir: pathlib.Path) -> None:
    """Writes what a run knows before it trains: its split, classes, contact sheet and threshold."""
    print(check.describe(data), flush=True)
    tests = {name: ids for name, (_, ids) in data.test_sets.items()}
    split_files.write_split(workdir / "splits.json", data.split, tests)
    files.write_json(workdir / "classes.json", data.source.class_names)
    train = [data.source.load(i) for i in data.split.train]
    figures.contact_sheet(train, workdir / "contact_sheet.png")
    found = evaluate.threshold_baseline(train, data.test_sets, workdir)
    print("Best grey-value threshold, Dice:", {k: round(v, 3) for k, v in found.items()})
