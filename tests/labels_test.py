"""Values of files to class ids and back; what is to be ignored has no weight anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fewshotseg import labels, pictures
from fewshotseg.data import augment, mask_values
from fewshotseg.data.survey import Survey
from fewshotseg.errors import InputError
from fewshotseg.genseg import losses, pair_sources
from fewshotseg.results import baselines, calibration, metrics
from fewshotseg.types import Case

GAPS = labels.Labels((0, 3, 7), 255)


def test_gaps_by_hand_and_back():
    raw = np.array([[0, 3], [7, 255]], np.int32)
    mask = mask_values.mask_to_class_ids(raw, 2, "a.png", GAPS)
    np.testing.assert_array_equal(mask, [[0, 1], [2, labels.IGNORED]])
    assert mask.dtype == np.uint8
    written = GAPS.to_file(mask, 2)
    np.testing.assert_array_equal(written, raw)
    assert written.dtype == np.uint8
    assert mask_values.mask_notes(raw, 2, GAPS) == ()


def test_large_values_need_more_bits_and_the_background_may_be_any():
    found = labels.Labels((5, 0, 1035))
    raw = np.array([5, 0, 1035, 5], np.uint16)
    np.testing.assert_array_equal(found.from_file(raw.astype(float), 2), [0, 1, 2, 0])
    np.testing.assert_array_equal(found.to_file(found.from_file(raw, 2), 2), raw)
    assert found.to_file(np.zeros(3, np.uint8), 2).dtype == np.uint16


def test_what_is_ignored_leaves_the_rest_as_it_would_be_read_without():
    found = labels.Labels(ignored=255)
    mask = mask_values.mask_to_class_ids(np.array([[0, 1, 255, 1]]), 1, "a.png", found)
    np.testing.assert_array_equal(mask, [[0, 1, labels.IGNORED, 1]])
    raw = np.array([[0, 1, 2, 255]])
    np.testing.assert_array_equal(mask_values.mask_to_class_ids(raw, 2, "a.png", found), raw)
    grey = labels.Labels(ignored=7)  # the ordinary reading of black and white is not lost
    mask = mask_values.mask_to_class_ids(np.array([[0, 255, 7, 255]]), 1, "a.png", grey)
    np.testing.assert_array_equal(mask, [[0, 1, labels.IGNORED, 1]])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([0, 3, 4], "value.* 4, which class_ids .0, 3, 7. does not list"),
        ([0.5, 3], "0.5"),
        ([-1], "-1"),
    ],
)
def test_values_that_nobody_listed_are_named(raw, words):
    with pytest.raises(InputError, match=rf"a\.png.*{words}"):
        mask_values.mask_to_class_ids(np.array([raw]), 2, "a.png", GAPS)


@pytest.mark.parametrize(
    ("found", "number", "words"),
    [
        (labels.Labels((0, 3)), 2, "x.class_ids is .0, 3.: give 3 different numbers"),
        (labels.Labels((0, 3, 3)), 2, "different numbers"),
        (labels.Labels((0, 70000, 1)), 2, "from 0 to 65535"),
        (labels.Labels((0, 3, 7), 3), 2, "ignore_id is 3, which is a class"),
        (labels.Labels((), 2), 2, "ignore_id is 2, which is a class"),
        (labels.Labels(), 255, "at most 254 classes"),
    ],
)
def test_what_does_not_fit_the_names_is_refused(found, number, words):
    with pytest.raises(InputError, match=words):
        found.check(number, "x")


# --- No weight ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("overlap", ["dice", "jaccard"])
def test_the_loss_is_that_of_the_other_pixels(outputs, overlap):
    """As of an image from which the ignored rows are cut; and their logits have no derivative."""
    numbers = np.random.default_rng(0)
    logits = jnp.asarray(numbers.normal(size=(2, 6, 5, outputs)), jnp.float32)
    mask = jnp.asarray(numbers.integers(0, max(outputs, 2), (2, 6, 5)), jnp.uint8)
    partly = mask.at[:, 4:].set(labels.IGNORED)
    wanted = losses.segmentation_loss(logits[:, :4], mask[:, :4], overlap)
    np.testing.assert_allclose(losses.segmentation_loss(logits, partly, overlap), wanted, rtol=1e-6)
    slopes = jax.grad(lambda x: losses.segmentation_loss(x, partly, overlap).sum())(logits)
    assert not slopes[:, 4:].any() and slopes[:, :4].all()
    nothing = jnp.full_like(mask, labels.IGNORED)
    np.testing.assert_allclose(losses.segmentation_loss(logits, nothing, overlap), 0.0, atol=1e-6)


def test_metrics_are_those_of_the_other_pixels():
    numbers = np.random.default_rng(1)
    prediction, reference = (numbers.integers(0, 3, (8, 6)).astype(np.uint8) for _ in range(2))
    partly = reference.copy()
    partly[5:] = labels.IGNORED
    found = metrics.case_metrics(prediction, partly, 3)
    wanted = metrics.case_metrics(prediction[:5], reference[:5], 3)
    for a, b in zip(found, wanted, strict=True):
        for name in ("dice", "sensitivity", "precision", "reference_size", "prediction_size"):
            assert a[name] == b[name], name


def test_calibration_and_threshold_are_those_of_the_other_pixels():
    numbers = np.random.default_rng(2)
    mask = numbers.integers(0, 2, (4, 16, 16)).astype(np.uint8)
    probabilities = np.clip(
        0.6 * mask[..., None] + 0.3 * numbers.random((4, 16, 16, 1)), 0.01, 0.99
    )
    partly, wrong = mask.copy(), probabilities.copy()
    partly[:, 12:], wrong[:, 12:] = labels.IGNORED, 0.99 * (1 - mask[:, 12:, :, None])
    found = calibration.fit(wrong, partly)
    assert found.temperature == calibration.fit(probabilities[:, :12], mask[:, :12]).temperature
    image = (200 * mask[0] + 20).astype(np.uint8)
    image[12:] = 220
    case = Case("a", image[..., None], partly[0])
    assert baselines.threshold_dice(case, 128, "bright") == 1.0


def test_counts_of_a_survey_leave_it_out():
    class Source:
        name, class_names, ids = "toy", ("a", "b"), ("x",)

        def load(self, case_id):
            mask = np.array([[0, 1, 1, 255], [0, 2, 255, 255]], np.uint8)
            return Case(case_id, mask[..., None], mask)

    np.testing.assert_allclose(Survey(Source(), 2)["x"].share, [2 / 5, 1 / 5])


def test_augmentation_moves_it_with_the_image():
    """A flip, by hand; and under every geometry it is where the image of it is bright."""
    flip = augment.Geometry(flip=1.0, scale=0, translate=0, rotate=0, shear=0)
    mask = jnp.zeros((6, 6), jnp.uint8).at[2, 1:3].set(2).at[:, 5].set(labels.IGNORED)
    warped = augment.augment_mask(mask, jax.random.key(0), strength=flip, num_classes=3)
    np.testing.assert_array_equal(warped, mask[:, ::-1])
    mask = jnp.zeros((24, 24), jnp.uint8).at[8:16, 6:18].set(labels.IGNORED)
    image = (mask[..., None] > 0).astype(jnp.float32)
    strong = augment.Geometry(scale=0.2, rotate=40.0, elastic=0.05)
    image, mask = augment.augment_pair(
        image, mask, jax.random.key(3), strength=strong, num_classes=3
    )
    assert set(np.unique(mask)) == {0, labels.IGNORED}
    sure = np.abs(np.asarray(image[..., 0]) - 0.5) > 0.45
    np.testing.assert_array_equal((image[..., 0] > 0.5)[sure], (mask > 0)[sure])


def test_what_is_pasted_is_labelled():
    donor = jnp.zeros((1, 4, 4), jnp.uint8).at[0, 1, 1].set(2).at[0, 3].set(labels.IGNORED)
    host = jnp.zeros((1, 4, 4), jnp.uint8).at[0, 0, 0].set(labels.IGNORED)
    zeros = jnp.zeros((1, 4, 4, 1))
    batch = {"synthetic_image": zeros, "synthetic_mask": host, "donor_image": zeros + 1.0}
    images, masks = pair_sources.paste({**batch, "donor_mask": donor}, 1e-3)
    np.testing.assert_array_equal(masks, host.at[0, 1, 1].set(2))
    np.testing.assert_array_equal(images[..., 0], jnp.zeros((1, 4, 4)).at[0, 1, 1].set(1.0))


def test_it_is_drawn_grey_and_never_as_a_reference():
    image = np.zeros((9, 9, 3), np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = labels.IGNORED
    assert tuple(pictures.overlay(image, mask)[2, 2]) == pictures.PALETTE["grey"]
    assert not pictures.overlay(image, mask * 0, mask).any()
