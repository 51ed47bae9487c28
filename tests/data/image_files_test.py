"""Reading of image and mask files."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fewshotseg.data import image_files as transforms
from fewshotseg.data import mask_values
from fewshotseg.errors import InputError

RAMP = (np.arange(12, dtype=np.uint8) * 20).reshape(3, 4)
COLOUR = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)
BLOB = np.zeros((16, 20), np.uint8)
BLOB[4:11, 5:15] = 1


def _save(folder, name, array, mode=None, **options):
    path = folder / name
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("extension", ["png", "tif", "bmp", "gif"])
def test_grey_files_keep_their_values(tmp_path, extension):
    image, notes = transforms.read_image(_save(tmp_path, f"a.{extension}", RAMP))
    assert image.dtype == np.uint8 and image.shape == (3, 4, 1) and notes == ()
    np.testing.assert_array_equal(image[..., 0], RAMP)


@pytest.mark.parametrize("extension", ["png", "tif", "bmp"])
def test_colour_files_keep_their_values(tmp_path, extension):
    image, notes = transforms.read_image(_save(tmp_path, f"a.{extension}", COLOUR))
    np.testing.assert_array_equal(image, COLOUR)
    assert notes == ()


def test_three_equal_channels_stay_three(tmp_path):
    image, _ = transforms.read_image(_save(tmp_path, "a.png", np.stack([RAMP] * 3, -1)))
    assert image.shape == (3, 4, 3)


def test_jpeg_is_close(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (64, 64))
    image, _ = transforms.read_image(_save(tmp_path, "a.jpg", smooth.copy(), quality=95))
    assert np.abs(image[..., 0].astype(int) - smooth).max() < 8


def test_alpha_is_dropped_with_a_note(tmp_path):
    transparent = np.concatenate([COLOUR, np.zeros((3, 4, 1), np.uint8)], axis=-1)
    image, notes = transforms.read_image(_save(tmp_path, "a.png", transparent))
    np.testing.assert_array_equal(image, COLOUR)
    assert notes == ("alpha channel dropped",)
    grey, notes = transforms.read_image(_save(tmp_path, "b.png", RAMP, "LA"))
    np.testing.assert_array_equal(grey[..., 0], RAMP)
    assert notes == ("alpha channel dropped",)


def test_palette_is_resolved(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 7, 7])
    image.save(tmp_path / "a.png")
    pixels, _ = transforms.read_image(tmp_path / "a.png")
    expected = [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [7, 7, 7]]]
    np.testing.assert_array_equal(pixels, expected)


def test_one_bit_image_is_black_and_white(tmp_path):
    image, _ = transforms.read_image(_save(tmp_path, "a.png", RAMP > 100))
    np.testing.assert_array_equal(image[..., 0], np.where(RAMP > 100, 255, 0))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits_are_stretched(tmp_path, extension):
    deep = np.array([[1000, 2000], [3000, 5000]], np.uint16)
    image, notes = transforms.read_image(_save(tmp_path, f"a.{extension}", deep))
    np.testing.assert_array_equal(image[..., 0], [[0, 64], [128, 255]])  # 63.75, 127.5 -> even
    assert notes == ("16-bit values scaled to 8 bit",)


def test_eight_bit_values_in_a_sixteen_bit_file_are_kept(tmp_path):
    image, notes = transforms.read_image(_save(tmp_path, "a.png", RAMP.astype(np.uint16)))
    np.testing.assert_array_equal(image[..., 0], RAMP)
    assert notes == ("16-bit file with 8-bit values",)


def test_floats_are_stretched_and_nan_is_refused(tmp_path):
    values = np.array([[0.0, 0.2], [0.4, 1.0]], np.float32)
    image, notes = transforms.read_image(_save(tmp_path, "a.tif", values))
    np.testing.assert_array_equal(image[..., 0], [[0, 51], [102, 255]])
    assert notes == ("floating-point values scaled to 8 bit",)
    values[0, 0] = np.nan
    with pytest.raises(InputError, match=r"b\.tif.*NaN"):
        transforms.read_image(_save(tmp_path, "b.tif", values))
    with pytest.raises(InputError, match=r"b\.tif.*NaN"):
        transforms.read_mask(tmp_path / "b.tif")


def _deep_png(path, pixels):
    """Writes 16 bits per channel, of 2 (grey and alpha), 3 or 4; Pillow cannot."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body
        data += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_is_reduced_with_a_note_unless_next_to_nothing_is_left(
    tmp_path, channels
):
    opaque = np.full((3, 4, 1), 65535)
    colours = RAMP[..., None] if channels == 2 else COLOUR
    deep = [colours * np.uint16(256) + 9, *[opaque] * (channels != 3)]
    image, notes = transforms.read_image(_deep_png(tmp_path / "a.png", np.concatenate(deep, -1)))
    np.testing.assert_array_equal(image, np.broadcast_to(colours, image.shape))
    assert notes[0] == "16 bits per colour channel reduced to 8"
    deep[0] = colours * np.uint16(16)  # 12 bits, of which the upper 8 of 16 are at most 15
    path = _deep_png(tmp_path / "b.png", np.concatenate(deep, -1))
    with pytest.raises(InputError, match=r"b\.png: has 16 bits per channel.*nearly black.*8-bit"):
        transforms.read_image(path)
    deep[0] = np.zeros_like(colours, np.uint16)
    deep[0][1:, 2:] = 1  # a mask of 0 and 1
    path = _deep_png(tmp_path / "c.png", np.concatenate(deep, -1))
    with pytest.raises(InputError, match="16 bits per channel: save as 8-bit or as 16-bit grey"):
        transforms.read_mask(path)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_exif_rotation_is_applied_to_image_and_mask(tmp_path, extension):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: shown after a quarter turn clockwise
    stored = np.zeros((16, 32), np.uint8)
    stored[:, 16:] = 255
    path = _save(tmp_path, f"a.{extension}", stored, exif=exif)
    image, notes = transforms.read_image(path)
    assert notes == ("EXIF rotation applied",)
    np.testing.assert_array_equal(image[..., 0] > 127, np.rot90(stored > 127, -1))
    np.testing.assert_array_equal(transforms.read_mask(path), image[..., 0])
    assert transforms.read_size(path) == (32, 16)


@pytest.mark.parametrize("kind", [1, 2, 7])  # bytes, text, undefined, in place of a number
def test_an_orientation_that_is_no_number_is_none(tmp_path, kind):
    entry = struct.pack("<HHI4s", 0x0112, kind, 2 if kind == 2 else 1, b"6\0\0\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    path = _save(tmp_path, "a.jpg", np.zeros((16, 32), np.uint8), exif=exif)
    assert transforms.read_size(path) == (16, 32)
    assert transforms.read_image(path)[0].shape == (16, 32, 1)


def test_several_frames_are_refused(tmp_path):
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    for name in ("a.tif", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="2 frames"):
            transforms.read_image(tmp_path / name)


def test_phone_photo_with_a_second_picture_is_read(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (200, 10))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    image, _ = transforms.read_image(tmp_path / "a.jpg")
    assert image.shape == (16, 16, 3) and image.min() > 190


def test_print_colours_are_converted_with_a_note(tmp_path):
    path = _save(tmp_path, "a.tif", COLOUR, "CMYK")
    image, notes = transforms.read_image(path)
    np.testing.assert_array_equal(image, COLOUR)
    assert notes == ("converted from CMYK to RGB",)
    grey = np.stack([BLOB * 255] * 3, axis=-1)
    mask = transforms.read_mask(_save(tmp_path, "b.tif", grey, "CMYK"))
    np.testing.assert_array_equal(mask, BLOB * 255)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path, extension):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = _save(tmp_path, f"a.{extension}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"a\.{extension}"):
        transforms.read_image(path)


def test_unreadable_files_name_file_and_remedy(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "brain.nii.gz").write_bytes(b"\x1f\x8b12345")
    (tmp_path / "phone.heic").write_bytes(b"12345")
    for name, words in {
        "empty.png": "empty",
        "text.png": "not a readable image",
        "missing.png": "no such file",
        "brain.nii.gz": "NIfTI.*PNG",
        "phone.heic": "HEIC.*JPEG",
    }.items():
        for read in (transforms.read_image, transforms.read_mask):
            with pytest.raises(InputError, match=f"{name}.*{words}"):
                read(tmp_path / name)


def test_a_forbidden_file_is_named(tmp_path, monkeypatch):
    path = _save(tmp_path, "a.png", RAMP)

    def forbidden(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    for method in ("read_bytes", "is_file"):  # of a file, of a folder that can only be listed
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path." + method, forbidden)
            with pytest.raises(InputError, match=r"a\.png: no permission"):
                transforms.read_image(path)


def test_read_size_reads_the_header(tmp_path):
    assert transforms.read_size(_save(tmp_path, "a.png", RAMP)) == (3, 4)


def test_mask_values_are_untouched(tmp_path):
    for name, array in {
        "ids.png": RAMP // 20,
        "deep.png": RAMP.astype(np.uint16) * 200,
        "half.tif": (RAMP / 7).astype(np.float32),
    }.items():
        np.testing.assert_array_equal(transforms.read_mask(_save(tmp_path, name, array)), array)
    bits = transforms.read_mask(_save(tmp_path, "bits.png", BLOB > 0))
    np.testing.assert_array_equal(bits, BLOB)


def test_three_equal_channels_and_alpha_are_reduced(tmp_path):
    rgb = np.stack([BLOB * 255] * 3, axis=-1)
    opaque = np.concatenate([rgb, np.full((16, 20, 1), 255, np.uint8)], axis=-1)
    for name, array, mode in [
        ("rgb.png", rgb, None),
        ("rgba.png", opaque, None),
        ("la.png", BLOB * 255, "LA"),
    ]:
        np.testing.assert_array_equal(
            transforms.read_mask(_save(tmp_path, name, array, mode)), BLOB * 255
        )


def test_palette_masks(tmp_path):
    coloured = Image.fromarray(BLOB * 2, "P")
    coloured.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    coloured.save(tmp_path / "coloured.png")
    np.testing.assert_array_equal(transforms.read_mask(tmp_path / "coloured.png"), BLOB * 2)
    inverted = Image.fromarray(1 - BLOB, "P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(tmp_path / "inverted.png")
    np.testing.assert_array_equal(transforms.read_mask(tmp_path / "inverted.png"), BLOB * 255)


def _palette(folder, name, indices, *colours, padding=()):
    image = Image.fromarray(indices, "P")
    image.putpalette([*np.ravel(colours).tolist(), *padding])
    image.save(folder / name)
    return folder / name


def test_the_whole_palette_says_whether_a_mask_is_black_and_white(tmp_path):
    black, white, red = (0, 0, 0), (255, 255, 255), (255, 0, 0)
    both = BLOB.copy()
    both[12:] = 2
    for ids in (BLOB, both):  # whether red is used or not
        path = _palette(tmp_path, "ids.png", ids, black, white, red)
        np.testing.assert_array_equal(transforms.read_mask(path), ids)
    ramp = [v for v in range(2, 256) for _ in range(3)]
    for name, padding in {"zeros.png": [0] * 762, "ramp.png": ramp, "none.png": []}.items():
        path = _palette(tmp_path, name, BLOB, black, white, padding=padding)
        np.testing.assert_array_equal(transforms.read_mask(path), BLOB * 255)
    web = _palette(tmp_path, "web.png", 4 - BLOB * 2, black, red, white, red, black)
    np.testing.assert_array_equal(transforms.read_mask(web), BLOB * 255)


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_a_palette_of_colours_that_does_not_begin_with_black_is_refused(tmp_path, extension):
    drawn = np.zeros((16, 20, 3), np.uint8)
    drawn[BLOB > 0] = (255, 0, 0)
    path = tmp_path / f"a.{extension}"
    Image.fromarray(drawn).quantize(2).save(path)  # the object is 0, the background is 1
    with pytest.raises(InputError, match="coloured and black is not the first colour.*class ids"):
        transforms.read_mask(path)
    grey = _palette(tmp_path, "grey.png", BLOB * 2, (128,) * 3, (200,) * 3, (0, 0, 0))
    with pytest.raises(InputError, match="black is not the first"):
        transforms.read_mask(grey)
    light = _palette(tmp_path, "light.png", BLOB, (255, 255, 255), (255, 0, 0))
    np.testing.assert_array_equal(transforms.read_mask(light), BLOB)


def test_colour_legend_and_alpha_drawing_are_refused(tmp_path):
    legend = np.zeros((16, 20, 3), np.uint8)
    legend[BLOB > 0] = (255, 0, 0)
    with pytest.raises(InputError, match=r"legend\.png.*colour legend.*in one grey channel\.$"):
        transforms.read_mask(_save(tmp_path, "legend.png", legend))
    with pytest.raises(InputError, match="colour legend"):
        transforms.read_mask(_save(tmp_path, "dark.png", legend // 255))
    drawn = np.zeros((16, 20, 4), np.uint8)
    drawn[..., 3] = BLOB * 255
    with pytest.raises(InputError, match="alpha channel alone"):
        transforms.read_mask(_save(tmp_path, "drawn.png", drawn))


def test_several_masks_are_joined(tmp_path):
    other = np.zeros_like(BLOB)
    other[12:, :3] = 1
    either = np.maximum(BLOB, other)
    grey = _save(tmp_path, "a_mask.png", BLOB * 255)
    bits = _save(tmp_path, "a_mask_1.png", other > 0)
    ids = _save(tmp_path, "a_mask_2.png", other)
    np.testing.assert_array_equal(transforms.read_mask([grey, bits]), either * 255)
    np.testing.assert_array_equal(transforms.read_mask([ids, grey]), either * 255)
    small = _save(tmp_path, "a_mask_3.png", other[:5])
    with pytest.raises(InputError, match=r"a_mask_3\.png.*20 x 5.*a_mask\.png.*20 x 16"):
        transforms.read_mask([grey, small])


def test_one_file_per_class_is_not_joined(tmp_path):
    other = np.zeros_like(BLOB)
    other[12:, :3] = 1
    for value in (1, 255):
        paths = [
            _save(tmp_path, f"a_mask_{i}.png", m * np.uint8(value))
            for i, m in enumerate((BLOB, other))
        ]
        with pytest.raises(
            InputError, match=f"a_mask_0.png.* same value {value}, .*class ids 0, 1, 2"
        ):
            transforms.read_mask(paths, 2)
    paths[1] = _save(tmp_path, "a_mask_1.png", other * 2)
    paths[0] = _save(tmp_path, "a_mask_0.png", BLOB)
    np.testing.assert_array_equal(transforms.read_mask(paths, 2), np.maximum(BLOB, other * 2))
    paths[1] = _save(tmp_path, "a_mask_1.png", other * 0)
    np.testing.assert_array_equal(transforms.read_mask(paths, 2), BLOB)


@pytest.mark.parametrize(
    "raw",
    [BLOB, BLOB * 255, BLOB * 7, BLOB.astype(np.uint16) * 65535, BLOB.astype(np.float32)],
    ids=["0/1", "0/255", "0/7", "0/65535", "float"],
)
def test_binary_masks(raw):
    mask = mask_values.mask_to_class_ids(raw, 1, "a.png")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, BLOB)


def test_uniform_masks():
    ones = np.ones((4, 4), np.uint8)
    assert mask_values.mask_to_class_ids(ones * 0, 1, "a.png").sum() == 0
    assert mask_values.mask_to_class_ids(ones * 255, 1, "a.png").sum() == 16
    assert mask_values.mask_to_class_ids(ones, 1, "a.png").sum() == 16


def test_jpeg_masks_are_cut_in_the_middle(tmp_path):
    yy, xx = np.mgrid[:64, :64]
    disc = ((yy - 30) ** 2 + (xx - 34) ** 2 < 300).astype(np.uint8)
    path = _save(tmp_path, "a.jpg", np.stack([disc * 255] * 3, -1), quality=75)
    raw = transforms.read_mask(path)
    assert np.unique(raw).size > 10
    np.testing.assert_array_equal(mask_values.mask_to_class_ids(raw, 1, path), disc)
    assert mask_values.mask_notes(raw, 1)[0].startswith("grey values")
    edge = np.array([[127, 128, 0, 3, 7, 255, 250, 240, 255, 251]], np.uint8)
    np.testing.assert_array_equal(
        mask_values.mask_to_class_ids(edge, 1, path)[0], [0, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    )


def test_stray_values_are_cut_with_a_note_and_a_legend_is_not():
    raw = BLOB * np.uint8(255)  # 70 pixels of foreground
    raw[4, 5:7], raw[0, 0] = 32, 200  # 3 of 71
    expected = (raw > 127).astype(np.uint8)
    np.testing.assert_array_equal(mask_values.mask_to_class_ids(raw, 1, "a.png"), expected)
    assert expected[4, 5] == 0 and expected[0, 0] == 1
    assert "stray pixels" in mask_values.mask_notes(raw, 1)[0]
    raw[0, 1:3] = 32  # 5 of 73: more than a twentieth
    with pytest.raises(InputError, match="0, 32, 200, 255.*legend"):
        mask_values.mask_to_class_ids(raw, 1, "a.png")
    official = np.zeros(512 * 512, np.uint8)  # the numbers of a mask of FUSeg
    official[:285], official[300:384] = 255, 32
    mask = mask_values.mask_to_class_ids(official.reshape(512, 512), 1, "a.png")
    assert mask.sum() == 285
    official[384:500] = 32
    with pytest.raises(InputError, match="0, 32, 255.*legend"):
        mask_values.mask_to_class_ids(official.reshape(512, 512), 1, "a.png")
    ids = BLOB * np.uint8(255)
    ids[0, 0] = 1  # a class id beside an ignore label, however rare
    with pytest.raises(InputError, match="0, 1, 255"):
        mask_values.mask_to_class_ids(ids, 1, "a.png")


def _png_header(path, width, height):
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(body)) + b"IHDR" + body
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4)
    return path


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (9000, 9000, "9000 x 9000 pixels, but at most 80 megapixels"),
        (10_000, 10_000, "10000 x 10000 pixels"),  # from 89 megapixels on Pillow warns
        (30_000, 30_000, "more than 179 megapixels"),  # and from 179 on it refuses
        (2, 500_000, "2 x 500000 pixels.*32768 pixels along a side"),
    ],
)
def test_enormous_images_are_refused_unread(tmp_path, width, height, words, recwarn):
    path = _png_header(tmp_path / "a.png", width, height)
    for read in (transforms.read_size, transforms.read_image, transforms.read_mask):
        with pytest.raises(InputError, match=rf"a\.png.*{words}"):
            read(path)
    assert not recwarn.list


def test_mask_notes_only_where_something_was_assumed():
    assert mask_values.mask_notes(BLOB, 1) == mask_values.mask_notes(BLOB * 255, 1) == ()
    assert mask_values.mask_notes(BLOB * 2, 2) == ()
    assert mask_values.mask_notes(BLOB * 7, 1) == ("mask value 7 read as foreground",)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2],
        [0, 128, 255],
        [0, 1, 255],
        range(256),
        [0, 0.5, 1],
        [-1, 0, 1],
        [0, 9, 65535],
        [70000],
        [7],
    ],
)
def test_unexpected_binary_values_are_listed(values):
    raw = np.tile(np.array(values), (4, 1))
    with pytest.raises(InputError, match=r"odd\.png.*values"):
        mask_values.mask_to_class_ids(raw, 1, "odd.png")


def test_a_value_that_is_nearly_whole_is_not_listed_as_whole():
    raw = np.array([[0, 0.9999999]], np.float32)
    with pytest.raises(InputError, match=r"values 0, 0\.9999999, which are no class ids"):
        mask_values.mask_to_class_ids(raw, 1, "a.png")


def test_class_ids_and_their_faults():
    raw = np.array([[0, 1], [2, 2]])
    np.testing.assert_array_equal(mask_values.mask_to_class_ids(raw, 2, "a.png"), raw)
    for values, words in {
        (0, 1, 2, 3): "0, 1, 2, 3",
        (0, 255): "255.*not accepted with several classes",
        (0, 128, 255): "grey legend",
        tuple(range(0, 250, 10)): "JPEG compression.*nearest",
    }.items():
        with pytest.raises(InputError, match=rf"a\.png.*{words}"):
            mask_values.mask_to_class_ids(np.array([values]), 2, "a.png")


def test_real_masks_become_binary(shared_data):
    folders = {
        "kvasir_seg/Kvasir-SEG/masks": 200,
        "fuseg/Foot Ulcer Segmentation Challenge/train/labels": 80,
        "isic2017/ISIC-2017_Training_Part1_GroundTruth": 120,
    }
    for folder, count in folders.items():
        paths = sorted((shared_data / folder).iterdir())
        assert len(paths) == count
        for path in paths[::10]:
            mask = mask_values.mask_to_class_ids(transforms.read_mask(path), 1, path)
            assert mask.ndim == 2 and set(np.unique(mask)) <= {0, 1}
