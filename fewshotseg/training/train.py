"""Training and evaluating all methods of an experiment."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from fewshotseg import figures, files
from fewshotseg.data import cases, check, nnunet_folds, split_files
from fewshotseg.methods import Method
from fewshotseg.results import calibration, evaluate
from fewshotseg.results.trained_models import segmenter_of
from fewshotseg.runs import folder as run_folder
from fewshotseg.runs import log as log_lib
from fewshotseg.training import devices, loop, search, timing
from fewshotseg.training.build import Experiment
from fewshotseg.training.recorder import Recorder, segmented_validation
from fewshotseg.training.stages import Stage


def train_and_evaluate(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Trains every method of an experiment and evaluates it on every test set.

    Methods that need no generator come first, and before its like the last, which is handed over, so that
    there is soon a model that predicts. Killed at any moment and called again with the same arguments, it
    goes on from the last checkpoint and ends with the same numbers, bit for bit. Of several processes, the
    first writes.

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
    for name, method in _in_order(experiment.methods):
        folder = workdir / name
        if evaluate.is_evaluated(folder, data.test_sets):
            continue
        if method.draws and players is None:
            stage = experiment.pretraining()
            players = run_stage(experiment, stage, workdir / stage.name)[0].players
        theta = search_theta(experiment, name, folder) if method.search else None
        feedback = None
        if experiment.feedback is not None and method.sources:
            drawing = players if method.draws else None
            feedback = weigh_ratings(experiment, name, folder, drawing, theta)
        stage = experiment.training(name, theta, feedback)
        _, model = run_stage(experiment, stage, folder, players if method.draws else None)
        if devices.is_main():
            weights, origin = segmenter_of(model)
            temperature = 1.0  # of images that were trained on, it would be below what is right
            if data.validation:
                segmented = segmented_validation(experiment, stage.segment, weights)
                found = calibration.fit(*zip(*segmented, strict=True))
                calibration.write(found, folder, int(model["step"]))
                temperature = found.temperature
            predictor = experiment.create_predictor(
                weights,
                source=f"{name}, {origin}",
                temperature=temperature,
                method=name,
            )
            settings = dataclasses.asdict(experiment.evaluation)
            evaluate.evaluate_model(predictor, data.test_sets, folder, **settings)
        # Programs of finished methods are of no more use, and a process may only hold so many: the
        # 65,530 memory maps that Linux allows are used up after a few runs.
        jax.clear_caches()
    # At the end, for the judge is one of the methods; its programs would wait for other processes.
    if devices.process_count() == 1:
        for name in experiment.methods:
            experiment.measure_pairs(workdir, name)


def _in_order(methods: Mapping[str, Method]) -> list[tuple[str, Method]]:
    handed_over = list(methods)[-1]
    return sorted(methods.items(), key=lambda item: (item[1].draws, item[0] != handed_over))


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


def weigh_ratings(
    experiment: Experiment, name: str, folder: pathlib.Path, players=None, theta=None
):
    """What a method makes of the ratings, as feedback.json in its folder says; None if nothing."""
    path = folder / "feedback.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if known is None:
        print(f"{name}: weighing the ratings, by trials if there is a choice ...", flush=True)
    choice = experiment.feedback(name, players, theta, known)
    if devices.is_main():
        files.write_json(path, choice.record)
        print(f"{name}: {describe_ratings(choice.record)}", flush=True)
    return choice.feedback


def describe_ratings(record: Mapping[str, Any]) -> str:
    """feedback.json in a sentence."""
    reward = record["reward"]
    auc = reward["auc"] if reward and reward["auc"] is not None else float("nan")
    model = (
        f"accepted and rejected told apart with an AUC of {auc:.2f}"
        if reward
        else f"too few, or all the same, for a model (at least {record['min_ratings']})"
    )
    tried = ""
    if record["losses"]:
        tried = (
            f", chosen on validation cases held out (loss {record['difference']:+.4f} with the ratings, "
            f"standard error {record['error']:.4f})"
        )
    used = "" if record["beta"] else ": they are not used"
    return f"{record['ratings']} ratings, {model}; beta {record['beta']:g}{tried}{used}."


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
        if experiment.feedback and method.sources and experiment.rating_trials.number:
            timings.append(_of_ratings(experiment.rating_trials, timings[-1]))
        jax.clear_caches()
    return timings


def _of_ratings(trials, training):
    """The trials of the ratings, which are trainings, from the time of the training itself."""
    num_steps = trials.number * (trials.num_steps or training.num_steps)
    stepping = num_steps * training.stepping / training.num_steps
    return timing.Timing(
        f"{training.name}: ratings", num_steps, 0.0, stepping, shrinks=not trials.num_steps
    )


def _time_search(experiment, name, strategy):
    fields = experiment.search_fields
    num_steps = fields["num_steps"] * search.most_trials(strategy, fields)
    warm_up, differentiate = experiment.search(name).warm_up, strategy == "hypergradient"
    return timing.measure_search(
        f"{name}: search", warm_up, differentiate, num_steps, fields["shrinks"]
    )


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
    nnunet_folds.write(workdir / "splits_final.json", data.split, data.source.ids)
    run_folder.write_classes(workdir, data.source)
    train = [data.source.load(i) for i in data.split.train]
    figures.contact_sheet(train, workdir / "contact_sheet.png")
    if (
        data.num_classes > 2
    ):  # a threshold tells no classes apart: its Dice would be of another question
        return
    found = evaluate.threshold_baseline(train, data.test_sets, workdir)
    print("Best grey-value threshold, Dice:", {k: round(v, 3) for k, v in found.items()})
