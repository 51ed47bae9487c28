"""Pictures: where lines go, that files are whole, that odd ids do no harm."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fewshotseg import figures, pictures
from fewshotseg.errors import InputError
from fewshotseg.types import Case


def _square(size=24, start=6, stop=16):
    mask = np.zeros((size, size), np.uint8)
    mask[start:stop, start:stop] = 1
    return mask


def _read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _has(picture, colour):
    return (picture == np.array(colour, np.uint8)).all(axis=-1)


def test_outline_of_a_square():
    mask = _square()
    thin, thick = pictures.outline(mask), pictures.outline(mask, 3)
    assert thin.sum() == 4 * 9 and not thin[7:15, 7:15].any() and not thin[mask == 0].any()
    assert thick.sum() == 100 - 16 and not thick[9:13, 9:13].any()


def test_outline_separates_touching_classes_and_closes_at_the_edge():
    mask = np.ones((6, 9), np.uint8)
    mask[:, 5:] = 2
    line = pictures.outline(mask)
    assert line[:, 4].all() and line[:, 5].all()
    assert line[0].all() and line[-1].all() and line[:, 0].all() and line[:, -1].all()
    assert not line[1:-1, 1:4].any()


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 1), (24, 24, 3)])
def test_overlay_colours(shape):
    image = np.full(shape, 200, np.uint8)
    before = image.copy()
    prediction, reference = _square(start=3, stop=9), _square(start=12, stop=20)
    picture = pictures.overlay(image, prediction, reference)
    assert picture.shape == (24, 24, 3) and picture.dtype == np.uint8
    assert np.array_equal(_has(picture, pictures.PREDICTION_COLOUR), pictures.outline(prediction))
    assert np.array_equal(_has(picture, pictures.REFERENCE_COLOUR), pictures.outline(reference))
    assert (picture[22, 2] == 200).all() and (picture[4, 5] == 200).all()
    assert (picture[2, 5] == 80).all()  # the dark rim, outside
    assert np.array_equal(image, before)


def test_overlay_of_equal_masks_shows_both():
    picture = pictures.overlay(np.zeros((24, 24, 3), np.uint8), _square(), _square())
    orange = _has(picture, pictures.PREDICTION_COLOUR)
    blue = _has(picture, pictures.REFERENCE_COLOUR)
    assert np.array_equal(orange | blue, pictures.outline(_square()))
    assert orange.sum() > 8 and blue.sum() > 8


def test_overlay_of_classes_without_reference():
    mask = _square(start=2, stop=8) + 2 * _square(start=12, stop=20)
    picture = pictures.overlay(np.zeros((24, 24), np.uint8), mask)
    assert np.array_equal(_has(picture, pictures.CLASS_COLOURS[0]), pictures.outline(mask == 1))
    assert np.array_equal(_has(picture, pictures.CLASS_COLOURS[1]), pictures.outline(mask == 2))


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match="reference has shape"):
        pictures.overlay(np.zeros((9, 9), np.uint8), np.zeros((9, 9)), np.zeros((9, 8)))


def test_colour_mask():
    assert np.array_equal(pictures.colour_mask(_square())[..., 1], _square() * 255)
    many = pictures.colour_mask(np.array([[0, 1, 2, 8]]))
    assert many[0].tolist() == [
        [0, 0, 0],
        *(list(pictures.CLASS_COLOURS[i]) for i in (0, 1, 0)),
    ]


def test_saved_overlay_keeps_proportions(tmp_path):
    image, mask = np.full((40, 80, 3), 90, np.uint8), np.zeros((40, 80), np.uint8)
    mask[10:30, 20:60] = 1
    figures.save_overlay(image, mask, tmp_path / "a" / "small.png", smallest=320)
    small = _read(tmp_path / "a" / "small.png")
    assert small.shape == (160, 320, 3)
    rows, columns = np.nonzero(_has(small, pictures.PREDICTION_COLOUR))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 119, 80, 239)
    figures.save_overlay(image, mask, tmp_path / "large.png", smallest=10, largest=20)
    assert _read(tmp_path / "large.png").shape == (10, 20, 3)
    figures.save_overlay(image, mask, tmp_path / "titled.png", mask, title="Dice 1.00", smallest=80)
    titled = _read(tmp_path / "titled.png")
    assert titled.shape[0] > 40 and titled.shape[1] == 80
    assert (titled[:14].min(axis=-1) < 100).any(), "no text above the picture"


def _cases(count, name="case {}"):
    rng = np.random.default_rng(0)
    shapes = [(30, 40, 3), (50, 20, 1), (64, 64, 3)]
    images = [rng.integers(0, 255, shapes[i % 3], np.uint8) // 4 for i in range(count)]
    masks = [np.zeros(image.shape[:2], np.uint8) for image in images]
    for mask in masks[1:]:
        mask[5:15, 5:15] = 1
    return [Case(name.format(i), a, b) for i, (a, b) in enumerate(zip(images, masks, strict=True))]


def test_contact_sheet_has_a_tile_for_each_case(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    figures.contact_sheet(_cases(5), path, columns=3, tile=100)
    picture = _read(path)
    assert picture.shape[1] == 3 * 100 + 4 * 8
    outlined = _has(picture, pictures.CLASS_COLOURS[0])
    columns = [slice(8 + i * 108, 108 + i * 108) for i in range(3)]
    split = 8 + 100 + 16 + 4
    counts = [
        outlined[rows, c].sum() for rows in (slice(0, split), slice(split, None)) for c in columns
    ]
    assert counts[0] == 0 and counts[5] == 0, "the empty mask and the missing sixth case"
    assert min(counts[1:5]) > 20
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_contact_sheet_with_odd_ids_and_too_many_cases(tmp_path, recwarn):
    path = tmp_path / "sheet.png"
    figures.contact_sheet(_cases(7, "$\\frac$ {} \u75c5\u4f8b " + "long " * 30), path, most=4)
    assert _read(path).shape[1] == 4 * 160 + 5 * 8
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_sheets_of_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        figures.contact_sheet([], tmp_path / "a.png")
    with pytest.raises(InputError, match="no images"):
        figures.image_grid([[]], tmp_path / "a.png")


def test_image_grid_shows_pixels_as_they_are(tmp_path):
    mask, image = np.zeros((8, 8), np.uint8), np.full((8, 8, 3), (10, 120, 240), np.uint8)
    mask[:, 4:] = 255
    figures.image_grid([[mask, image], [image]], tmp_path / "grid.png", ["mask", "image"], tile=64)
    picture = _read(tmp_path / "grid.png")
    assert picture.shape == (8 + 16 + 2 * 72, 2 * 72 + 8, 3)
    assert (picture[24:88, 8:40] == 0).all() and (picture[24:88, 40:72] == 255).all()
    assert (picture[24:88, 80:144] == (10, 120, 240)).all()
    assert (picture[96:160, 8:72] == (10, 120, 240)).all()
    assert (picture[96:160, 80:144] == 255).all()


def test_a_file_in_place_of_the_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        figures.save_image(np.zeros((4, 4), np.uint8), tmp_path / "file" / "a.png")


def test_drawing_needs_no_jax_and_no_pyplot():
    code = "import sys, fewshotseg.figures; print({'jax', 'matplotlib.pyplot'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_real_images(shared_data, tmp_path):
    folder = shared_data / "kvasir_seg" / "Kvasir-SEG"
    cases = []
    for path in sorted((folder / "images").glob("*.jpg"))[:4]:
        mask = np.asarray(Image.open(folder / "masks" / path.name).convert("L")) > 127
        cases.append(Case(path.stem, _read(path), mask.astype(np.uint8)))
    figures.contact_sheet(cases, tmp_path / "sheet.png")
    orange = _has(_read(tmp_path / "sheet.png"), pictures.CLASS_COLOURS[0])
    assert 100 < orange.sum() < 0.1 * orange.size


def test_volumes_are_shown_in_three_planes_cut_through_the_mask():
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1, 2, 0] = 1
    page = pictures.in_planes(volume, mask, spacing=(2.0, 1.0, 1.0))
    axial, coronal, sagittal = volume[1], volume[::-1, 2], volume[::-1, :, 0]
    assert page.shape == (4, 4 + 1 + 4 + 1 + 3)  # slices of 2 mm take two rows
    np.testing.assert_array_equal(page[:3, :4], axial)
    np.testing.assert_array_equal(page[:, 5:9], np.repeat(coronal, 2, axis=0))
    np.testing.assert_array_equal(page[:, 10:], np.repeat(sagittal, 2, axis=0))
    middle = pictures.in_planes(volume, mask * 0)
    np.testing.assert_array_equal(middle[:3, :4], volume[1])
    np.testing.assert_array_equal(middle[:2, 5:9], volume[::-1, 1])
    flat = np.zeros((3, 4))
    assert pictures.in_planes(flat, flat) is flat
