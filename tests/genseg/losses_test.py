"""Losses against values computed by hand, against optax, and at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fewshotseg.genseg import losses
from fewshotseg.labels import IGNORED

LOG2, LOG3 = np.log(2), np.log(3)


def _random(classes, shape=(3, 4, 5), seed=0):
    numbers = np.random.default_rng(seed)
    outputs = 1 if classes == 2 else classes
    logits = numbers.standard_normal((*shape, outputs)).astype(np.float32) * 2
    return jnp.asarray(logits), jnp.asarray(numbers.integers(0, classes, shape), jnp.uint8)


def test_one_hot_leaves_the_background_out():
    masks = jnp.array([[[0, 1], [2, 1]]], jnp.uint8)
    one_hot = losses.one_hot_foreground(masks, 3)
    assert one_hot.dtype == jnp.float32
    np.testing.assert_array_equal(one_hot[0], [[[0, 0], [1, 0]], [[0, 1], [1, 0]]])


@pytest.mark.parametrize(("kind", "expected"), [("dice", 4.0 / 5.0), ("jaccard", 2.5 / 3.5)])
def test_soft_overlap_by_hand(kind, expected):
    probabilities = jnp.array([0.5, 0.5, 1.0, 0.0]).reshape(1, 2, 2, 1)
    targets = jnp.array([1.0, 0.0, 1.0, 0.0]).reshape(1, 2, 2, 1)
    # sum pt = 1.5, sum p = 2, sum t = 2
    np.testing.assert_allclose(
        losses.soft_overlap(probabilities, targets, kind), [[expected]], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["dice", "jaccard"])
def test_soft_overlap_of_perfect_empty_and_disjoint_masks(kind):
    full, empty = jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1))
    assert losses.soft_overlap(full, full, kind) == 1
    assert losses.soft_overlap(empty, empty, kind) == 1
    half = full.at[:, 0].set(0)
    # nothing in common, 4 pixels in total, smoothing 1
    assert losses.soft_overlap(half, 1 - half, kind) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("kind", "overlap"), [("dice", (2 * 0.5 + 1) / (3 + 1)), ("jaccard", (0.5 + 1) / (2.5 + 1))]
)
def test_segmentation_loss_of_one_class_by_hand(kind, overlap):
    masks = jnp.array([[[1, 0], [0, 0]]], jnp.uint8)
    loss = losses.segmentation_loss(jnp.zeros((1, 2, 2, 1)), masks, kind)
    np.testing.assert_allclose(loss, [LOG2 + 1 - overlap], rtol=1e-6)


def test_segmentation_loss_of_two_classes_by_hand():
    masks = jnp.array([[[0, 1], [1, 2]]], jnp.uint8)
    loss = losses.segmentation_loss(jnp.zeros((1, 2, 2, 3)), masks, "dice")
    # p = 1/3 everywhere: dice (4/3 + 1) / (4/3 + 2 + 1) and (2/3 + 1) / (4/3 + 1 + 1)
    np.testing.assert_allclose(loss, [LOG3 + 1 - (7 / 13 + 1 / 2) / 2], rtol=1e-6)
    loss = losses.segmentation_loss(jnp.zeros((1, 2, 2, 3)), masks, "jaccard")
    # (2/3 + 1) / (10/3 - 2/3 + 1) and (1/3 + 1) / (7/3 - 1/3 + 1)
    np.testing.assert_allclose(loss, [LOG3 + 1 - (5 / 11 + 4 / 9) / 2], rtol=1e-6)


def test_one_sigmoid_is_a_softmax_against_zero():
    logits, masks = _random(2)
    both = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    for kind in ("dice", "jaccard"):
        np.testing.assert_allclose(
            losses.segmentation_loss(both, masks, kind),
            losses.segmentation_loss(logits, masks, kind),
            rtol=1e-5,
        )


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("classes", [2, 3])
def test_segmentation_loss_against_optax(classes, shape):
    logits, masks = _random(classes, shape)
    pixels = tuple(range(1, len(shape)))
    if classes == 2:
        targets = masks[..., None].astype(jnp.float32)
        cross_entropy = optax.sigmoid_binary_cross_entropy(logits, targets)[..., 0]
    else:
        targets = jax.nn.one_hot(masks, classes)
        cross_entropy = optax.softmax_cross_entropy(logits, targets)
    # optax counts its smoothing twice in numerator and denominator
    dice = optax.losses.dice_loss(logits, targets, smooth=0.5, ignore_background=True)
    np.testing.assert_allclose(
        losses.segmentation_loss(logits, masks, "dice"),
        cross_entropy.mean(pixels) + dice,
        rtol=1e-5,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_examples_do_not_see_each_other(classes):
    logits, masks = _random(classes)
    together = losses.segmentation_loss(logits, masks)
    assert together.shape == (3,)
    for i in range(3):
        alone = losses.segmentation_loss(logits[i : i + 1], masks[i : i + 1])
        np.testing.assert_allclose(alone, together[i : i + 1], rtol=1e-6)
    np.testing.assert_array_equal(
        losses.segmentation_loss(logits, masks.astype(jnp.int32)), together
    )


@pytest.mark.parametrize("kind", ["dice", "jaccard"])
@pytest.mark.parametrize("classes", [2, 3])
def test_extreme_logits_have_finite_losses_and_gradients(classes, kind):
    masks = _random(classes)[1]
    size = 1 if classes == 2 else classes
    for scale in (1e4, -1e4):
        right = jax.nn.one_hot(masks, classes)[..., -size:] if size > 1 else masks[..., None]
        logits = scale * (2.0 * right.astype(jnp.float32) - 1.0)
        value, grad = jax.value_and_grad(lambda x: losses.segmentation_loss(x, masks, kind).sum())(
            logits
        )
        assert np.isfinite(grad).all()
        if scale > 0:  # all right
            assert value == pytest.approx(0, abs=1e-5)
        else:  # all wrong: the cross-entropy is the distance of the logits
            assert float(value) > 3 * 1e4


def test_unknown_overlap_is_refused():
    with pytest.raises(ValueError, match="'dice' or 'jaccard', not 'iou'"):
        losses.segmentation_loss(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2), jnp.uint8), "iou")


def test_adversarial_losses_by_hand():
    logits = jnp.array([[0.0, 2.0], [1.0, 1.0]]).reshape(2, 2, 1, 1)
    vanilla_real = [(LOG2 + np.log1p(np.exp(-2))) / 2, np.log1p(np.exp(-1))]
    vanilla_fake = [(LOG2 + np.log1p(np.exp(2))) / 2, np.log1p(np.exp(1))]
    np.testing.assert_allclose(losses.adversarial_loss(logits, True), vanilla_real, rtol=1e-6)
    np.testing.assert_allclose(losses.adversarial_loss(logits, False), vanilla_fake, rtol=1e-6)
    lsgan = losses.adversarial_loss(logits, True, "lsgan")
    np.testing.assert_allclose(lsgan, [(1 + 1) / 2, 0], rtol=1e-6)
    lsgan = losses.adversarial_loss(logits, False, "lsgan")
    np.testing.assert_allclose(lsgan, [(0 + 4) / 2, 1], rtol=1e-6)
    hinge = [losses.adversarial_loss(logits, is_real, "hinge") for is_real in (True, False)]
    np.testing.assert_allclose(hinge, [[(1 + 0) / 2, 0], [(1 + 3) / 2, 2]], rtol=1e-6)
    np.testing.assert_allclose(losses.fooling_loss(logits, "hinge"), [-1, -1], rtol=1e-6)
    np.testing.assert_array_equal(losses.fooling_loss(logits, "lsgan"), [(1 + 1) / 2, 0])
    scales = (logits, jnp.full((2, 1, 1, 1), 3.0))  # each counts the same, whatever its patches
    both = losses.adversarial_loss(scales, False, "lsgan")
    np.testing.assert_allclose(both, [(2 + 9) / 2, (1 + 9) / 2], rtol=1e-6)
    with pytest.raises(ValueError, match="'vanilla', 'lsgan' or 'hinge', not 'wgan'"):
        losses.adversarial_loss(logits, True, "wgan")


def test_feature_loss_by_hand():
    """The mean over layers of means, of whatever size."""
    drawn = [jnp.full((2, 2, 2, 1), 1.0), (jnp.full((2, 1, 1, 3), 2.0),)]
    real = [jnp.full((2, 2, 2, 1), 0.5), (jnp.full((2, 1, 1, 3), -1.0),)]
    np.testing.assert_allclose(losses.feature_loss(drawn, real), [(0.5 + 3) / 2] * 2)


@pytest.mark.parametrize("logit", [1e4, -1e4])
@pytest.mark.parametrize("is_real", [True, False])
def test_adversarial_loss_of_a_sure_discriminator(is_real, logit):
    logits = jnp.full((1, 2, 2, 1), logit)
    value, grad = jax.value_and_grad(lambda x: losses.adversarial_loss(x, is_real).sum())(logits)
    wrong = is_real == (logit < 0)
    assert value == pytest.approx(1e4 if wrong else 0, abs=1e-6)
    assert grad.sum() == pytest.approx((-1 if is_real else 1) if wrong else 0, abs=1e-6)


def test_l1_loss_by_hand():
    drawn = jnp.array([[[[1.0], [-1.0]]], [[[0.5], [0.5]]]])
    real = jnp.array([[[[0.0], [1.0]]], [[[0.5], [1.0]]]])
    np.testing.assert_allclose(losses.l1_loss(drawn, real), [1.5, 0.25])
    assert losses.l1_loss(jnp.ones((2, 3, 4, 5, 1)), jnp.zeros((2, 3, 4, 5, 1))).tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["dice", "jaccard"])
@pytest.mark.parametrize("classes", [2, 3])
def test_shares_of_whole_pixels_are_class_ids(classes, kind):
    """Pixels to be ignored, which are of no class, included."""
    logits, masks = _random(classes)
    masks = masks.at[:, 1].set(IGNORED)
    shares = jax.nn.one_hot(masks, classes)
    np.testing.assert_allclose(
        losses.segmentation_loss(logits, shares, kind),
        losses.segmentation_loss(logits, masks, kind),
        rtol=1e-5,
    )


def test_the_loss_of_a_divided_pixel_by_hand():
    """One pixel with p = 3/4, a quarter of it background, half of it object, a quarter ignored."""
    shares = jnp.array([0.25, 0.5]).reshape(1, 1, 1, 2)
    loss = losses.segmentation_loss(jnp.full((1, 1, 1, 1), LOG3), shares)
    cross_entropy = 0.25 * np.log(4) + 0.5 * np.log(4 / 3)  # over the larger of weight 3/4 and 1
    p = 0.75 * 0.75
    np.testing.assert_allclose(
        loss, [cross_entropy + 1 - (2 * p * 0.5 + 1) / (p + 0.5 + 1)], rtol=1e-6
    )
