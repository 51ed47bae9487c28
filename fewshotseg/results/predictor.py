"""A trained model, ready to segment arrays: loaded once, compiled once per size; see `trained_models`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fewshotseg.data import canvas, volume_files
from fewshotseg.data import tiles as tiling
from fewshotseg.errors import InputError
from fewshotseg.labels import PLAIN, Labels
from fewshotseg.methods import segmenter_name
from fewshotseg.models import factory
from fewshotseg.results import sliding

PredictProbabilities = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained segmenter and all that is needed to use it on new images.

    Attributes:
      predict_probabilities: float32 `[B, *size, C]` in [-1, 1] to `[B, *size, K]` in [0, 1]; K is 1
        (foreground) for one class, else number of classes + 1, background first.
      image_size: a number for a square, (height, width), or (depth, height, width), in pixels.
      channels: C, 1 or 3.
      class_names: the foreground classes, with ids 1, 2, ...
      threshold: probability from which a pixel is foreground; only for K = 1.
      source: where the weights came from, for people to read.
      temperature: what the logits are divided by before they become probabilities, see `calibration.py`.
      segmenter: name of the network.
      notice: what people should know of weights that were not trained here.
      network: `predict_probabilities` as a function that JAX can trace, with the weights inside of
        it; None where there is no such function.
      grey_values: of a model of volumes, from the values in a file to those from 0 to 255.
      tiles: how the network sees an image in tiles; None where it sees whole ones, squashed.
      labels: the values of the classes in the masks that are written; those of the training masks.
      flip_axes: along which its training mirrored images, -1 is left-right; () where that is not known.
      channel: of volumes that have several files, CASE_0000, CASE_0001, ..., the one it was trained on.
    """

    predict_probabilities: PredictProbabilities
    image_size: canvas.Size
    channels: int
    class_names: tuple[str, ...]
    threshold: float
    source: str
    temperature: float = 1.0
    segmenter: str = ""
    notice: str = ""
    network: Callable[[jax.Array], jax.Array] | None = None
    grey_values: volume_files.GreyValues | None = None
    tiles: tiling.Tiles | None = None
    labels: Labels = PLAIN
    flip_axes: tuple[int, ...] = ()
    channel: int = 0

    @property
    def mask_values(self) -> tuple[int, ...]:
        """What is written for the background and for every class: of pictures of one class, 0 and 255."""
        number = len(self.class_names)
        if number == 1 and self.spatial_axes == 2 and not self.labels.ids:
            return (0, 255)
        return self.labels.values(number)

    def written(self, mask: np.ndarray) -> np.ndarray:
        """Class ids as they are written, uint8, or uint16 if one is above 255."""
        values = Labels(self.mask_values)
        return values.to_file(mask, len(self.class_names))

    @property
    def spatial_axes(self) -> int:
        """2, or 3 of a model of volumes."""
        return len(canvas.as_size(self.image_size))


def create_predictor(
    config: Mapping[str, Any],
    weights: Any,
    class_names: Sequence[str],
    source: str,
    temperature: float = 1.0,
    method: str = "",
    labels: Labels = PLAIN,
) -> Predictor:
    """A predictor of weights in memory.

    Args:
      config: of the run, nested mappings.
      weights: of the segmenter.
      class_names: the foreground classes.
      source: see `Predictor`.
      temperature: likewise.
      method: that trained them, where it may have a segmenter of its own.
      labels: see `Predictor`.
    """
    network = create_network(config, len(class_names) + 1, method)
    apply = network.apply
    segment = compile_segmenter(apply, temperature)
    return Predictor(
        predict_probabilities=functools.partial(segment, weights),
        image_size=config["data"]["image_size"],
        channels=config["data"]["channels"],
        class_names=tuple(class_names),
        threshold=config["evaluate"]["threshold"],
        source=source,
        temperature=temperature,
        segmenter=segmenter_name(method, config["segmenter"]["name"]),
        notice=network.notice,
        network=lambda images: _probabilities(apply(weights, images, None), temperature),
        grey_values=_grey_values(config["data"]),
        tiles=tiling.create(config["data"]),
        labels=labels,
        channel=config["data"].get("volumes", {}).get("channel", 0),
    )


def _grey_values(data: Mapping[str, Any]) -> volume_files.GreyValues | None:
    if len(canvas.as_size(data["image_size"])) != 3:
        return None
    fields = data["volumes"]
    return volume_files.GreyValues(tuple(fields["window"]), tuple(fields["percentiles"]))


def create_network(
    config: Mapping[str, Any], num_classes: int, method: str = ""
) -> factory.Network:
    """The segmenter of a configuration, or that of a method which has its own."""
    size = canvas.as_size(config["data"]["image_size"])
    spec = factory.Spec(num_classes, size, config["data"]["channels"])
    name = segmenter_name(method, config["segmenter"]["name"])
    return factory.create_segmenter(name, config["segmenter"][name], spec)


def compile_segmenter(
    apply: Callable, temperature: float = 1.0
) -> Callable[[Any, np.ndarray], np.ndarray]:
    """`(params, images [B, *spatial, C] in [-1, 1]) -> probabilities [B, *spatial, K]`, compiled.

    Args:
      apply: `(params, images, keys) -> logits [B, *spatial, K]`, called without keys.
      temperature: what the logits are divided by.
    """

    @jax.jit
    def probabilities(params, images):
        return _probabilities(apply(params, images, None), temperature)

    return lambda params, images: np.asarray(probabilities(params, images))


def _probabilities(logits: jax.Array, temperature: float) -> jax.Array:
    logits = logits / temperature
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def segment_images(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    batch_size: int,
    spacings: Sequence[Sequence[float]] = (),
) -> list[np.ndarray]:
    """Predicts masks at the original size of each image: uint8 `[*spatial]` class ids, one per image.

    Arguments and errors as for `probabilities_of`.
    """
    return [
        canvas.probabilities_to_mask(probabilities, predictor.threshold)
        for probabilities in probabilities_of(predictor, images, names, batch_size, spacings)
    ]


def probabilities_of(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    batch_size: int,
    spacings: Sequence[Sequence[float]] = (),
) -> Iterator[np.ndarray]:
    """Predicts probabilities at the original size of each image, one image after the other.

    The network always sees `batch_size` images, or tiles of one image, so that it is compiled for one
    shape only; the last batch is filled up with copies whose results are dropped.

    Args:
      predictor: a trained model.
      images: `[*spatial, C]` from 0 to 255, C is 1 or 3, sizes may differ.
      names: of the images, for messages.
      batch_size: of the network.
      spacings: of the images' pixels in mm; may be left out where the model has no common spacing.

    Yields:
      float32 `[*spatial, K]` in [0, 1].

    Raises:
      InputError: a probability is not finite, or a spacing is needed and unknown; the message names the
        image.
      ValueError: the network returned another shape than `Predictor` describes.
    """
    size, channels = predictor.image_size, predictor.channels
    if predictor.tiles:
        predict = functools.partial(_checked, predictor)
        for i, image in enumerate(images):
            found = sliding.probabilities_in_tiles(
                predict,
                image,
                spacings[i] if spacings else (),
                predictor.tiles,
                channels,
                batch_size,
                names[i],
            )
            _require_finite(found, names[i])
            yield found
        return
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        batch = np.stack([canvas.to_network_image(i, size, channels) for i in chunk])
        missing = batch_size - len(chunk)
        batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        probabilities = _checked(predictor, batch)
        for j, image in enumerate(chunk):
            _require_finite(probabilities[j], names[start + j])
            yield canvas.restore_probabilities(probabilities[j], image.shape[:-1])


def _checked(predictor: Predictor, batch: np.ndarray) -> np.ndarray:
    probabilities = np.asarray(predictor.predict_probabilities(batch), np.float32)
    _check_shape(probabilities.shape, batch.shape, len(predictor.class_names))
    return probabilities


def _require_finite(probabilities: np.ndarray, name: str) -> None:
    if not np.isfinite(probabilities).all():
        raise InputError(
            f"{name}: the model predicts NaN or infinite values for this image."
            " Its training has probably diverged: train again with a lower learning rate."
        )


def _check_shape(found, wanted, num_foreground: int) -> None:
    allowed = (1, 2) if num_foreground == 1 else (num_foreground + 1,)
    if found[:-1] != wanted[:-1] or found[-1] not in allowed:
        raise ValueError(f"network returned {found} for {wanted} and {num_foreground} class(es)")
