"""clDice: whether the centre lines of thin structures lie in each other's masks.

S. Shit et al., "clDice - a novel topology-preserving loss function for tubular structure
segmentation", CVPR 2021: the harmonic mean of two shares, that of the prediction's centre line in the
reference and that of the reference's in the prediction.
"""

import math

import numpy as np

from fewshotseg.errors import InputError


def require_skimage() -> None:
    """Raises an `InputError` where scikit-image is not installed."""
    try:
        import skimage.morphology  # noqa: F401
    except ImportError as error:
        raise InputError(
            "evaluate.cldice needs scikit-image: pip install 'fewshotseg[vessels]' (in a clone, "
            "'.[vessels]'), or set evaluate.cldice=False."
        ) from error


def cldice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """clDice in [0, 1]; 0 if one mask is empty, NaN if a centre line is empty and its mask is not.

    A bar of even thickness may have no centre line at all.

    Args:
      prediction: bool `[H, W]` or `[D, H, W]`.
      reference: the same.
    """
    from skimage.morphology import skeletonize

    if not prediction.any() or not reference.any():
        return 0.0
    predicted, wanted = skeletonize(prediction) > 0, skeletonize(reference) > 0
    if not predicted.any() or not wanted.any():
        return math.nan
    precision, sensitivity = float(reference[predicted].mean()), float(prediction[wanted].mean())
    total = precision + sensitivity
    return 2.0 * precision * sensitivity / total if total else 0.0
