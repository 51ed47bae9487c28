"""The modes of run.py, one function each."""

import os
import pathlib
from typing import Any

from fewshotseg import errors


def run(mode: str, config, flags: Any) -> None:
    """Runs one mode.

    Args:
      mode: a key of `COMMANDS`.
      config: the configuration.
      flags: has `workdir`, `data_dir`, `input`, `output`, `coordinator`, `num_processes` and
        `process_id`.

    Raises:
      InputError: whatever the user can put right.
    """
    import jax

    from fewshotseg.runs import checkpoint
    from fewshotseg.training import devices as parallel

    set_compilation_cache(config.compilation_cache)
    together = flags.coordinator or flags.num_processes > 1
    if together:
        if mode != "train":
            raise errors.InputError(f"--mode={mode} runs in one process: leave out --coordinator.")
        parallel.start(flags.coordinator, flags.num_processes, flags.process_id)
    try:
        COMMANDS[mode](config, flags)
    except jax.errors.JaxRuntimeError as error:
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


def train(config, flags) -> None:
    from fewshotseg.training import devices as parallel
    from fewshotseg.training import train as train_lib

    train_lib.train_and_evaluate(config, flags.workdir)
    if parallel.is_main():
        _report([pathlib.Path(flags.workdir)])


def evaluate(config, flags) -> None:
    from fewshotseg.data import cases
    from fewshotseg.results import evaluate as evaluate_lib
    from fewshotseg.runs import folder

    workdir = pathlib.Path(flags.workdir)
    folder.read_config(workdir)
    folder.check_same(config, workdir)
    evaluate_lib.evaluate_run(config, workdir, cases.create_data(config).test_sets)
    _report([workdir])


def predict(config, flags) -> None:
    from fewshotseg.results import predict_files as predict_lib
    from fewshotseg.results import predictor as trained

    if not flags.input or not flags.output:
        raise errors.InputError("predict needs --input=FILE|DIR and --output=DIR.")
    predictor = trained.load_predictor(flags.workdir, config.predict.method)
    print(f"Model: {predictor.source}")
    rows = predict_lib.predict_files(
        predictor,
        flags.input,
        flags.output,
        batch_size=config.evaluate.batch_size,
        overlays=config.predict.overlays,
    )
    failed = [row["file"] for row in rows if row["error"]]
    if failed:
        raise errors.InputError(
            f"{len(failed)} of {len(rows)} files could not be read ({', '.join(failed[:3])}): the "
            f"reasons are in {pathlib.Path(flags.output, 'areas.csv')}; all others are done."
        )


def report(config, flags) -> None:
    workdirs = [pathlib.Path(folder) for folder in flags.workdir.split(",")]
    _report(workdirs, pathlib.Path(flags.output) if flags.output else None)


def _report(workdirs, output=None):
    from fewshotseg.results.report import page as report_lib

    path = report_lib.build_report(workdirs, output or workdirs[0] / "report.html")
    print(report_lib.results_table(workdirs))
    print(f"Report: {path}")


def hypergradient(config, flags) -> None:
    from fewshotseg.training import compare_estimators as diagnose

    rows = diagnose.compare_estimators(config, flags.workdir)
    print(diagnose.table(rows))
    print(f"Table and plot: {pathlib.Path(flags.workdir, 'hypergradient')}")


def check(config, flags) -> None:
    from fewshotseg.data import cases
    from fewshotseg.data import check as check_lib

    output = pathlib.Path(flags.output or pathlib.Path(flags.workdir, "check"))
    source = cases.create_source(config.data, strict=False)
    found = check_lib.check_source(source, output, config.data.image_size)
    print(f"Contact sheet: {output / 'contact_sheet.png'}")
    if found["faults"]:
        raise errors.InputError(f"{len(found['faults'])} faults, listed above: mend them first.")


def prepare(config, flags) -> None:
    from fewshotseg.data.sources import tfds as datasets

    if config.data.source != "tfds":
        raise errors.InputError(
            f"data.source is {config.data.source!r}: only data sets with an official download are "
            "prepared (configs/isic.py, busi.py, ...); a folder or the demo needs no preparation."
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
    "report": report,
    "hypergradient": hypergradient,
}
