"""Temperature scaling (Guo et al., "On calibration of modern neural networks", ICML 2017).

One number divides all logits, so that the probabilities of the validation pixels are as likely as
possible. Where 0.5 is the threshold, it moves no mask at the size of the network.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

from fewshotseg import files, labels
from fewshotseg.results import metrics

LIMITS = 0.2, 5.0  # of a handful of images that are all right, the best temperature would be 0
MOST_PIXELS = 2_000_000  # more say nothing new
_FILE = "calibration.json"
_SMALLEST = 1e-7  # float32 knows no probability nearer to 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a temperature does to the images it was fitted on.

    Attributes:
      temperature: above 1 where the model was surer than it was right.
      num_images: that it was fitted on.
      loss_before, loss_after: mean negative log-likelihood of a pixel, in nats.
      ece_before, ece_after: expected calibration error of the pixels, in [0, 1], mean over the classes.
    """

    temperature: float
    num_images: int
    loss_before: float
    loss_after: float
    ece_before: float
    ece_after: float


def fit(probabilities: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Calibration:
    """The temperature with the least negative log-likelihood, within `LIMITS`.

    Args:
      probabilities: of every image, float `[*spatial, K]` in [0, 1], see `Predictor`, without a
        temperature.
      masks: likewise, uint8 `[*spatial]` of class ids; what is to be ignored in them is.
    """
    targets = np.concatenate([np.ravel(mask) for mask in masks])
    step = -(-targets.size // MOST_PIXELS)
    targets = targets[::step]
    counted = labels.counts(targets)
    targets = targets[counted]
    flat = np.concatenate([p.reshape(-1, p.shape[-1]) for p in probabilities])
    logits = _logits(flat[::step][counted])

    def loss(log_temperature):
        return _loss(logits / np.exp(log_temperature), targets)

    found = optimize.minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded")
    temperature = float(np.exp(found.x))
    return Calibration(
        temperature,
        len(masks),
        loss(0.0),
        loss(found.x),
        _calibration_error(logits, targets),
        _calibration_error(logits / temperature, targets),
    )


def write(calibration: Calibration, folder: pathlib.Path, step: int) -> None:
    """Writes calibration.json into the folder of a method, for the weights of `step`."""
    files.write_json(folder / _FILE, {"step": step, **dataclasses.asdict(calibration)})


def read_temperature(folder: pathlib.Path, step: int) -> float:
    """Of the weights of `step`; 1 where none was fitted to them."""
    try:
        found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except OSError:
        return 1.0
    return float(found["temperature"]) if found["step"] == step else 1.0


def _logits(probabilities):
    """`[pixels, classes]`, background first."""
    p = np.clip(probabilities.astype(np.float64), _SMALLEST, 1.0)
    if p.shape[-1] > 1:
        return np.log(p)
    foreground = special.logit(np.minimum(p, 1.0 - _SMALLEST))
    return np.concatenate([np.zeros_like(foreground), foreground], axis=-1)


def _loss(logits, targets):
    chosen = np.take_along_axis(logits, targets[:, None].astype(np.int64), axis=-1)[:, 0]
    return float((special.logsumexp(logits, axis=-1) - chosen).mean())


def _calibration_error(logits, targets):
    p = special.softmax(logits, axis=-1)
    counts = [metrics.calibration_counts(p[:, k], targets == k) for k in range(1, p.shape[-1])]
    return float(np.mean([metrics.expected_calibration_error(c) for c in counts]))
