"""Training and evaluating all methods of an experiment."""

import contextlib
import dataclasses
import pathlib

import jax

from fewshotseg import figures
from fewshotseg.data import cases, check, nnunet_folds, split_files
from fewshotseg.results import calibration, evaluate
from fewshotseg.results.predictor import segmenter_of
from fewshotseg.runs import folder as run_folder
from fewshotseg.runs import log as log_lib
from fewshotseg.training import devices, loop, search, timing
from fewshotseg.training.build import Experiment
from fewshotseg.training.recorder import Recorder, segmented_validation
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
    for name, method in sorted(experiment.methods.items(), key=lambda item: item[1].draws):
        folder = workdir / name
        if evaluate.is_evaluated(folder, data.test_sets):
            continue
        if method.draws and players is None:
            stage = experiment.pretraining()
            players = run_stage(experiment, stage, workdir / stage.name)[0].players
        theta = search_theta(experiment, name, folder) if method.search else None
        stage = experiment.training(name, theta)
        _, model = run_stage(experiment, stage, folder, players if method.draws else None)
        if devices.is_main():
            weights, origin = segmenter_of(model)
            segmented = segmented_validation(experiment, stage.segment, weights)
            found = calibration.fit(*zip(*segmented, strict=True))
            calibration.write(found, folder, int(model["step"]))
            predictor = experiment.create_predictor(
                weights,
                source=f"{name}, {origin}",
                temperature=found.temperature,
                method=name,
            )
            settings = dataclasses.asdict(experiment.evaluation)
            evaluate.evaluate_model(predictor, data.test_sets, folder, **settings)
        # Programs of finished methods are of no more use, and a process may only hold so many: the
        # 65,530 memory maps that Linux allows are used up after a few runs.
        jax.clear_caches()
    if devices.is_main():  # at the end, for the judge is one of the methods
        for name in experiment.methods:
            experiment.measure_pairs(workdir, name)


def search_theta(experiment: Experiment, name: str, folder: pathlib.Path):
    """The outer variables that the search of a method finds; its trials go into search.json there."""
    strategy, path = experiment.methods[name].search, folder / "search.json"
    fields, num_steps = experiment.search_fields, experiment.search_fields["num_steps"]
    total = search.most_trials(strategy, fields) * num_steps
    done = search.num_done(path) * num_steps
    bar = log_lib.progress_bar(f"{name}, search", total, done, shown=devices.is_main())

    def report(fold, start, taken):
        fresh = bar.n == done
        what = "compiling (up to 3 minutes, kept for next time)" if fresh and not taken else ""
        bar.set_postfix_str(what or f"fold {fold + 1}, start {start + 1}", refresh=bool(what))
        bar.update(taken)

    with contextlib.closing(bar):
        problem = experiment.search(name, report)
        theta = search.run(strategy, problem, fields, path, experiment.seed)
        bar.total = bar.n  # a search without evidence ends early
    jax.clear_caches()
    return theta


def time_stages(experiment: Experiment) -> list[timing.Timing]:
    """Compiles and times every stage of an experiment on throw-away states; nothing is kept of it.

    The compiled programs go into the compilation cache, from where the training takes them.
    """
    timings, players = [], None
    if any(method.draws for method in experiment.methods.values()):
        stage = experiment.pretraining()
        timings.append(timing.measure(stage, None))
        players = stage.init(None).players
    for name, method in experiment.methods.items():
        method_players = players if method.draws else None
        if method.search:
            timings.append(_time_search(experiment, name, method.search))
        timings.append(timing.measure(experiment.training(name), method_players))
        jax.clear_caches()
    return timings


def _time_search(experiment, name, strategy):
    fields = experiment.search_fields
    num_steps = fields["num_steps"] * search.most_trials(strategy, fields)
    warm_up, differentiate = experiment.search(name).warm_up, strategy == "hypergradient"
    return timing.measure_search(f"{name}: search", warm_up, differentiate, num_steps)


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
    """Writes what a run knows before it trains: its split, classes, contact sheet, threshold."""
    print(check.describe(data), flush=True)
    tests = {name: ids for name, (_, ids) in data.test_sets.items()}
    split_files.write_split(workdir / "splits.json", data.split, tests)
    nnunet_folds.write(workdir / "splits_final.json", data.split)
    run_folder.write_classes(workdir, data.source)
    train = [data.source.load(i) for i in data.split.train]
    figures.contact_sheet(train, workdir / "contact_sheet.png")
    if (
        data.num_classes > 2
    ):  # a threshold tells no classes apart: its Dice would be of another question
        return
    found = evaluate.threshold_baseline(train, data.test_sets, workdir)
    print("Best grey-value threshold, Dice:", {k: round(v, 3) for k, v in found.items()})
