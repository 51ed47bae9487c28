"""The modes of the command line, one function each."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import shlex
from typing import Any

from fewshotseg import errors


def run(mode: str, config, flags: Any) -> None:
    """Runs one mode.

    Args:
      mode: a key of `COMMANDS`.
      config: the configuration.
      flags: has `workdir`, `minutes`, `data_dir`, `input`, `output`, `num`, `web`,
        `host`, `port`, `allow_other_machines`, `coordinator`, `num_processes` and `process_id`.

    Raises:
      InputError: whatever the user can put right.
    """
    import jax

    from fewshotseg.runs import checkpoint
    from fewshotseg.training import config_check, devices

    for name in ("input", "output", "data_dir"):
        if "://" in (getattr(flags, name) or ""):
            raise errors.InputError(f"--{name} is a folder or file of this machine: copy it here.")
    config_check.check_fields(config)
    set_compilation_cache(config.compilation_cache)
    together = flags.coordinator or (flags.num_processes, flags.process_id) != (1, 0)
    if together:
        if mode != "train":
            raise errors.InputError(f"--mode={mode} runs in one process: leave out --coordinator.")
        devices.start(flags.coordinator, flags.num_processes, flags.process_id)
    try:
        COMMANDS[mode](config, flags)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise errors.InputError(
                f"the memory does not suffice ({str(error).splitlines()[0][:120]}). What is trained is "
                f"kept: use a smaller train.batch_size ({config.train.batch_size}), data.image_size "
                f"({config.data.image_size}) or width of the network; docs/questions.md has more."
            ) from error
        if not together:
            raise
        reason = str(error).splitlines()[0].rpartition("computation: ")[2]
        raise errors.InputError(
            f"process {flags.process_id} lost the others ({reason[:80]}). The last checkpoint is "
            "kept: start all processes again with the same commands."
        ) from error
    except OSError as error:
        reason = checkpoint.disk_fault(error)
        if not reason:
            raise
        raise errors.InputError(
            f"{error.filename or flags.workdir} could not be written ({reason}). What is trained is "
            "kept: put that right and run the same command again."
        ) from error


def set_compilation_cache(folder: str) -> None:
    """Keeps compiled programs between runs; must come before the first array. '' for none."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))


@contextlib.contextmanager
def _alone_in(workdir):
    """Creates the folder of a run and locks it; of several processes, the one that writes does."""
    from fewshotseg.runs import checkpoint, lock
    from fewshotseg.training import devices

    with contextlib.ExitStack() as stack:
        if devices.is_main():
            checkpoint.check_writable(pathlib.Path(workdir))
            stack.enter_context(lock.locked(workdir))
        yield


def train(config, flags) -> None:
    from fewshotseg.runs import folder, remote
    from fewshotseg.training import budget, config_check, devices
    from fewshotseg.training import train as train_lib

    workdir = pathlib.Path(flags.workdir)
    config_check.check_config(config)
    with _alone_in(workdir):
        experiment = budget.plan(config, workdir, flags.minutes)
        if devices.is_main():
            folder.write(config, workdir)
            where = f"{folder.device()}, results in {remote.shown(workdir)}"
            print(f"{config.name}: seed {config.seed}, {where}", flush=True)
        train_lib.train_and_evaluate(experiment, workdir)
        if devices.is_main():
            _report([workdir])


def evaluate(config, flags) -> None:
    from fewshotseg.results import evaluate as evaluate_lib
    from fewshotseg.runs import folder
    from fewshotseg.training import build_data

    _require_run(flags)
    workdir = pathlib.Path(flags.workdir)
    with _alone_in(workdir):
        folder.check_same(config, workdir)
        evaluate_lib.evaluate_run(config, workdir, build_data.create_data(config).test_sets)
        _report([workdir])


def _require_run(flags):
    from fewshotseg.runs import folder

    if not folder.is_trained(pathlib.Path(flags.workdir)):
        raise errors.InputError(
            f"nothing has been trained in {flags.workdir}: give the --workdir of a run, or train first."
        )


def predict(config, flags) -> None:
    from fewshotseg.results import predict_files, predict_volumes

    if not flags.input or not flags.output:
        raise errors.InputError("predict needs --input=FILE|DIR and --output=DIR.")
    predictor = _load_predictor(config, flags)
    wanted = {"overlays": config.predict.overlays, "probabilities": config.predict.probabilities}
    if predictor.spatial_axes == 3:
        rows = predict_volumes.predict_volumes(predictor, flags.input, flags.output, **wanted)
        table = "volumes.csv"
    else:
        batch_size = config.evaluate.batch_size
        rows = predict_files.predict_files(
            predictor,
            flags.input,
            flags.output,
            batch_size=batch_size,
            workers=config.predict.workers,
            **wanted,
        )
        table = "areas.csv"
    every = {row["file"] for row in rows}
    failed = sorted({row["file"] for row in rows if row["error"]})
    if failed:
        raise errors.InputError(
            f"{len(failed)} of {len(every)} files could not be read ({', '.join(failed[:3])}): the "
            f"reasons are in {pathlib.Path(flags.output, table)}; all others are done."
        )


def _load_predictor(config, flags, pictures_alone=""):
    """The model of a run, or the mean of several; `pictures_alone`: a mode that knows no volumes."""
    from fewshotseg.results import flips, trained_models

    predictor = trained_models.load_ensemble(flags.workdir.split(","), config.predict.method)
    if pictures_alone and predictor.spatial_axes == 3:
        raise errors.InputError(
            f"{pictures_alone} is for models of pictures, and {flags.workdir} has one of volumes: use "
            "--mode=predict."
        )
    if config.predict.flips:
        predictor = flips.with_flips(predictor)
    print(f"Model: {predictor.source}", flush=True)
    return predictor


def serve(config, flags) -> None:
    _check_host("serve", flags)
    from fewshotseg.web import server

    predictor = _load_predictor(config, flags, pictures_alone="serve")
    names = ", ".join(pathlib.Path(folder).resolve().name for folder in flags.workdir.split(","))
    print("Compiling ...", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        log = functools.partial(print, flush=True)
        server.serve(server.create_app(predictor, names), flags.host, flags.port, log)


def _check_host(mode, flags):
    """Raises `InputError` where a page cannot be served, or not to so many."""
    for package in ("starlette", "uvicorn", "websockets"):
        if importlib.util.find_spec(package) is None:
            raise errors.InputError(
                f"{mode} needs {package}: pip install 'fewshotseg[web]' (in a clone, '.[web]')."
            )
    from fewshotseg.web import security

    if not (flags.allow_other_machines or security.is_loopback(flags.host)):
        raise errors.InputError(
            f"--host={flags.host} can be reached from other machines, unencrypted: give "
            "--allow_other_machines if that is meant."
        )


def review(config, flags) -> None:
    from fewshotseg.runs import folder, ratings, remote

    _require_run(flags)
    workdir = pathlib.Path(flags.workdir)
    path = workdir / ratings.FOLDER / ratings.FILE
    if flags.output:
        ratings.write_csv(pathlib.Path(flags.output), ratings.read(path))
        print(f"Ratings: {len(ratings.active(ratings.read(path)))} in {flags.output}")
        return
    _check_host("review", flags)
    from fewshotseg.training import build_review
    from fewshotseg.web import review as page
    from fewshotseg.web import server

    folder.check_same(config, workdir)
    print("Making the pairs ...", flush=True)
    session = build_review.create_session(config, workdir)
    place = remote.shown(workdir, ratings.FOLDER, ratings.FILE)
    here = " of a copy of that folder here" if remote.is_remote(place) else f"={shlex.quote(place)}"
    print(f"Answers go to {place}; --config.feedback.file{here} trains with them.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        log = functools.partial(print, flush=True)
        server.serve(page.create_app(session, workdir.resolve().name), flags.host, flags.port, log)


def export(config, flags) -> None:
    from fewshotseg.results import export as export_lib
    from fewshotseg.web import static_site

    if not flags.output:
        raise errors.InputError("export needs --output=DIR.")
    predictor = _load_predictor(config, flags, pictures_alone="export")
    about = export_lib.about_runs(predictor, flags.workdir.split(","))
    folder = export_lib.export_model(predictor, flags.output, about)
    static_site.remove_site(folder / "web")  # of an earlier model
    if flags.web:
        static_site.write_site(folder, folder / "web")
        print(f"The page that predicts in the browser: {folder / 'web'}, see its README.txt")
    print(f"Exported: {folder}; try python {folder / 'predict_standalone.py'} PICTURE")


def report(config, flags) -> None:
    workdirs = [pathlib.Path(folder) for folder in flags.workdir.split(",")]
    _report(workdirs, pathlib.Path(flags.output) if flags.output else None)


def _report(workdirs, output=None):
    from fewshotseg.results.report import page as report_lib
    from fewshotseg.runs import remote

    path = report_lib.build_report(workdirs, output or workdirs[0] / "report.html")
    print(report_lib.results_table(workdirs))
    print(f"Report: {path if output else remote.shown(workdirs[0], path.name)}")


def hypergradient(config, flags) -> None:
    from fewshotseg.runs import folder, remote
    from fewshotseg.training import compare_estimators

    _require_run(flags)
    folder.check_same(config, pathlib.Path(flags.workdir))
    with _alone_in(flags.workdir):
        rows = compare_estimators.compare_estimators(config, flags.workdir)
    print(compare_estimators.table(rows))
    print(f"Table and plot: {remote.shown(flags.workdir, 'hypergradient')}")


def synthesize(config, flags) -> None:
    from fewshotseg.runs import folder
    from fewshotseg.training import synthesize as synthesize_lib

    if not flags.output:
        raise errors.InputError("synthesize needs --num=N and --output=DIR.")
    _require_run(flags)
    workdir, output = pathlib.Path(flags.workdir), pathlib.Path(flags.output)
    folder.check_same(config, workdir)
    about = synthesize_lib.synthesize(config, workdir, output, flags.num)
    tried = sum(source["tried"] for source in about["sources"].values())
    print(f"{about['num']} pairs of {tried} in {output}, see manifest.csv and contact_sheet.png")


def check(config, flags) -> None:
    from fewshotseg.data import check as check_lib
    from fewshotseg.training import build_data

    output = pathlib.Path(flags.output or pathlib.Path(flags.workdir, "check"))
    found = check_lib.check_source(
        build_data.create_source(config.data, strict=False),
        output,
        config.data.image_size,
        tiles=build_data.create_tiles(config),
        draw=functools.partial(build_data.create_split, config),
    )
    if number := len(found["faults"]):
        faults, them = ("1 fault", "it") if number == 1 else (f"{number} faults", "them")
        raise errors.InputError(f"{faults}, listed above: mend {them} first.")


def prepare(config, flags) -> None:
    from fewshotseg.data.sources import tfds as datasets

    if config.data.source != "tfds":
        raise errors.InputError(
            f"data.source is {config.data.source!r}: only data sets with an official download are "
            "prepared (configs/public.py:busi and others); a folder or the demo needs no preparation."
        )
    if not flags.data_dir:
        raise errors.InputError(
            "prepare needs --data_dir=FOLDER, with the official download in it."
        )
    datasets.prepare(config.data.tfds.name, flags.data_dir, config.data.tfds.data_dir)


COMMANDS = {
    "train": train,
    "check": check,
    "prepare": prepare,
    "evaluate": evaluate,
    "predict": predict,
    "serve": serve,
    "review": review,
    "export": export,
    "report": report,
    "hypergradient": hypergradient,
    "synthesize": synthesize,
}
