"""Images that are nearly the same are found, and stay together."""

import numpy as np

from fewshotseg.data import look_alikes


def test_thumbnails_ignore_brightness_contrast_and_colour():
    image = np.random.default_rng(0).integers(0, 120, (50, 70, 3), np.uint8)
    thumbnail = look_alikes.thumbnail(image)
    assert thumbnail.shape == (576,) and thumbnail.dtype == np.float32
    assert np.isclose(np.linalg.norm(thumbnail), 1) and abs(thumbnail.mean()) < 1e-6
    assert thumbnail @ look_alikes.thumbnail(image * 2 + np.uint8(10)) > 0.99
    assert not look_alikes.thumbnail(np.full((9, 9, 1), 7, np.uint8)).any()


def test_near_duplicates_agree_with_numpy():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (30, 24, 24, 1)).astype(np.uint8)
    images[7] = images[3]
    images[20] = np.clip(images[11] * 0.9 + rng.normal(0, 20, images[11].shape), 0, 255)
    found = look_alikes.near_duplicates(
        np.stack([look_alikes.thumbnail(image) for image in images])
    )
    correlation = np.corrcoef(images.reshape(30, -1))
    expected = [(3, 7, 1.0), (11, 20, correlation[11, 20])]
    assert 0.95 < correlation[11, 20] < 0.99
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([p[2] for p in found], [p[2] for p in expected], atol=1e-5)


def test_the_nearest_image_may_be_mirrored():
    images = np.random.default_rng(3).integers(0, 256, (9, 24, 24, 1)).astype(np.uint8)
    thumbnails = np.stack([look_alikes.thumbnail(image) for image in images])
    for seen in (images[4], images[4, :, ::-1], images[4, ::-1], images[4, ::-1, ::-1]):
        place, correlation = look_alikes.nearest(look_alikes.thumbnail(seen), thumbnails)
        assert place == 4 and abs(correlation - 1) < 1e-5
    assert look_alikes.nearest(thumbnails[4], np.delete(thumbnails, 4, 0))[1] < 0.3


def test_near_duplicates_across_blocks():
    thumbnails = np.random.default_rng(2).normal(size=(2100, 576)).astype(np.float32)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    thumbnails[2050] = thumbnails[5]
    thumbnails[1030] = thumbnails[1025]
    assert [p[:2] for p in look_alikes.near_duplicates(thumbnails)] == [(5, 2050), (1025, 1030)]


def test_clusters_join_groups_and_duplicates():
    thumbnails = np.eye(6, 576, dtype=np.float32)
    thumbnails[4] = thumbnails[1]
    numbers = look_alikes.clusters(thumbnails, ["a", "b", "a", "", "c", ""])
    assert numbers[0] == numbers[2] and numbers[1] == numbers[4]
    assert len(set(numbers)) == 4
    assert len(set(look_alikes.clusters(thumbnails[:4], [""] * 4))) == 4


def test_mirrored_copies_are_look_alikes():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (8, 48, 48, 1)).astype(np.uint8)
    images[1], images[2], images[3] = images[0, :, ::-1], images[0, ::-1], images[0, ::-1, ::-1]
    images[5] = np.rot90(images[4])  # a quarter turn is another picture
    thumbnails = np.stack([look_alikes.thumbnail(image) for image in images])
    found = {pair[:2] for pair in look_alikes.near_duplicates(thumbnails)}
    assert found == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert len(set(look_alikes.clusters(thumbnails, [""] * 8))) == 5
