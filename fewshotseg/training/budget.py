"""How long a training will take, said before it begins, and how many steps fit into so many minutes."""

import json
import pathlib

from fewshotseg import errors, files
from fewshotseg.runs import folder
from fewshotseg.training import build, build_parts, config_check, devices, timing, train

STAGES = ("pretrain", "train")


def plan(config, workdir: pathlib.Path, minutes: float = 0.0) -> build.Experiment:
    """The experiment, after saying how long it will take; with `minutes`, with the steps that fit.

    A budget changes `config`. It is kept in budget.json, so that the same command continues the run.

    Args:
      config: the configuration.
      workdir: of the run.
      minutes: 0 for as many steps as the configuration says.

    Raises:
      InputError: a budget for a run that was begun without one, or for several processes; or what
        `build.build` says.
    """
    path = workdir / "budget.json"
    if minutes and path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["minutes"] == minutes:
            _shorten(config, stored)
        return build.build(config)
    experiment = build.build(config)
    together = devices.process_count() > 1
    known = together or folder.is_begun(workdir)
    if minutes and known:
        reason = "runs in one process" if together else f"is for a new run, and {workdir} holds one"
        raise errors.InputError(f"--minutes {reason}: leave it out.")
    # Without a cache, everything would be compiled twice.
    if known or not (minutes or config.compilation_cache):
        return experiment
    print("Timing one step of everything, which compiles it ...", flush=True)
    timings = train.time_stages(experiment)
    print(timing.describe(timings), flush=True)
    if not minutes:
        return experiment
    share = timing.fitting_share(timings, 60 * minutes)
    if share == 1.0:
        _keep(path, minutes, config)
        return experiment
    _shorten(config, {stage: max(1, int(share * config[stage].num_steps)) for stage in STAGES})
    print(
        f"Into {minutes:g} minutes fit {config.pretrain.num_steps} steps of the generator and "
        f"{config.train.num_steps} of the segmenter, {100 * share:.0f} % of those planned.",
        flush=True,
    )
    _keep(path, minutes, config)
    return build.build(config)


def _shorten(config, steps):
    """Gives both stages so many steps; raises InputError where something no longer goes together."""
    config.pretrain.num_steps = steps["pretrain"]
    build_parts.set_num_steps(config, steps["train"])
    config_check.check_config(config)


def _keep(path, minutes, config):
    steps = {stage: config[stage].num_steps for stage in STAGES}
    files.write_json(path, {"minutes": minutes, **steps})
