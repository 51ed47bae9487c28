"""What a run tells while it runs: JSON lines always, TensorBoard if installed, a progress bar."""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from fewshotseg import files


class NoLog:
    """Takes what a `Log` takes and writes nothing: for processes that do not write."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        pass

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


class Log:
    """Appends one JSON object per line to a file; a resumed run drops the lines it will repeat.

    Args:
      path: of the file, created if it is missing.
      stage: written on every line.
      step: lines of later steps are removed: they come from a run that was killed after its last
        checkpoint.
    """

    def __init__(self, path: pathlib.Path, stage: str, step: int = 0):
        self._stage = stage
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        files.write_text(path, "".join(files.as_json(line) + "\n" for line in kept))
        self._path = path
        self._board = _tensorboard_writer(path.parent)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers and nested lists of numbers; on the disk at once."""
        values = {k: np.asarray(v).tolist() for k, v in values.items()}
        files.append_line(self._path, {"stage": self._stage, "step": step, **values})
        if self._board:
            for key, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(key, value, step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """An RGB image, uint8 `[H, W, 3]`, for TensorBoard."""
        if self._board:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._board:
            self._board.close()


def read_log(path: pathlib.Path) -> list[dict]:
    """The lines of a log; a last line cut short by a kill is left out."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def _tensorboard_writer(directory):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"))


def progress_bar(
    stage: str, num_steps: int, step: int, unit: str = "step", shown: bool = True
) -> tqdm.tqdm:
    """A bar with the stage, the step, the time left, and whatever `set_postfix_str` is given."""
    interactive = sys.stderr.isatty()
    return tqdm.tqdm(
        total=num_steps,
        initial=step,
        desc=stage,
        unit=unit,
        dynamic_ncols=interactive,
        mininterval=0.5 if interactive else 15.0,
        file=sys.stderr,
        disable=not shown,
    )


@contextlib.contextmanager
def compiling(bar: tqdm.tqdm, what: str) -> Iterator[None]:
    """Says that something compiles, and leaves the time it takes out of the bar's rate."""
    if bar.disable:
        yield
        return
    name, started = bar.desc, time.perf_counter()
    text = f"compiling the {what} (up to 3 minutes, kept for next time)"
    bar.set_description_str(f"{name.removesuffix(': ')}: {text}")
    try:
        yield
    finally:
        bar.start_t += time.perf_counter() - started
        bar.set_description_str(name)
