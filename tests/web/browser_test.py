"""The live page in a real browser, driven as a person would; skipped where there is none."""

import io
import pathlib
import re
import time

import numpy as np
import pytest
from PIL import Image
from serving import grey_levels, make_predictor, running

from fewshotseg.results.predictor import segment_images


@pytest.fixture(scope="module")
def site():
    with running() as found:
        yield found


def _save(path, height=40, width=60, bright=100):
    image = np.full((height, width, 3), 20, np.uint8)
    image[10:30, 10:40] = bright
    image[15:25, 20:30] = 250
    Image.fromarray(image).save(path)
    return image


def _area(page):
    return int(re.sub(r"\D", "", page.inner_text("#area").split("px")[0]))


def _wait_for_area(page, wanted):
    page.locator("#area", has_text=f": {wanted:,} px").wait_for()


def _expected(image, threshold=0.5, predictor=None):
    """Of probabilities rounded to 8 bits, as the page sees them."""
    from fewshotseg.results.predictor import probabilities_of

    (found,) = probabilities_of(predictor or make_predictor(), [image], ["a"], 1)
    return int((np.rint(255 * found[..., 0]) >= 255 * threshold).sum())


def test_a_picture_is_chosen_looked_at_and_saved(visit, site, tmp_path):
    image = _save(tmp_path / "case 7.png", bright=160)
    page = visit(site)
    assert "not for diagnosis" in page.inner_text("#purpose")
    assert page.is_disabled("#snapshot")
    page.set_input_files("#files", tmp_path / "case 7.png")
    (mask,) = segment_images(make_predictor(), [image], ["a"], 1)
    _wait_for_area(page, int(mask.sum()))
    assert page.inner_text("#size") == "60 × 40"

    saved = []
    page.on("download", lambda download: saved.append(download))
    page.click("#snapshot")
    for _ in range(100):
        page.wait_for_timeout(50)
        if len(saved) == 2:
            break
    named = {download.suggested_filename: pathlib.Path(download.path()) for download in saved}
    assert set(named) == {"case 7.png", "case 7_mask.png"}
    with Image.open(io.BytesIO(named["case 7.png"].read_bytes())) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), image)
    with Image.open(io.BytesIO(named["case 7_mask.png"].read_bytes())) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("L")), 255 * mask)

    page.fill("#threshold", "0.8")
    fewer = _expected(image, 0.8)
    assert 0 < fewer < mask.sum()
    _wait_for_area(page, fewer)
    page.fill("#spacing", "0.5")
    page.locator("#area", has_text=f"{fewer / 4:.1f} mm²").wait_for()


GIVEN = """async ([kind, width]) => {
  const canvas = new OffscreenCanvas(width, 30);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, 30);
  context.fillStyle = "white";
  context.fillRect(0, 0, width / 2, 30);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], "given.png", { type: "image/png" }));
  const target = document.getElementById("stage");
  target.dispatchEvent(kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.parametrize("kind, width", [("paste", 40), ("drop", 48)])
def test_a_picture_is_pasted_or_dropped(kind, width, visit, site):
    page = visit(site)
    page.evaluate(GIVEN, [kind, width])
    _wait_for_area(page, 30 * width // 2)
    assert page.inner_text("#size") == f"{width} × 30"


def _pixels(page):
    with Image.open(io.BytesIO(page.locator("#view").screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return pixels[80:-80, 20:-20]  # without the bars and the corners around the picture


def test_what_is_drawn_follows_the_switches(visit, site, tmp_path):
    _save(tmp_path / "a.png", bright=160)
    page = visit(site)
    page.set_input_files("#files", tmp_path / "a.png")
    page.locator("#area", has_text="px").wait_for()
    orange = np.array([230, 159, 0])

    def near_orange():
        return int((np.abs(_pixels(page) - orange).max(-1) < 8).sum())

    both = _pixels(page)
    assert near_orange() > 100
    page.uncheck("#outline")
    assert near_orange() < 20
    tinted = _pixels(page)
    page.uncheck("#map")
    plain = _pixels(page)
    assert np.ptp(plain, axis=-1).max() <= 2  # the picture itself is grey
    assert 0 < np.abs(tinted - plain).max() and np.abs(both - tinted).max() > 50
    page.check("#map")
    page.fill("#opacity", "0.9")
    assert np.abs(_pixels(page) - plain).mean() > 1.5 * np.abs(tinted - plain).mean()


def test_a_camera_moves_the_mask(visit, site):
    page = visit(site)
    page.fill("#threshold", "0.35")  # the browser's own test picture is dark
    page.click("#camera")
    page.locator("#rate", has_text=".").wait_for()
    assert page.get_attribute("#camera", "aria-pressed") == "true"
    assert page.inner_text("#size") in ("256 × 192", "256 × 144")
    areas = set()
    until = time.monotonic() + 20
    while len(areas) < 3 and time.monotonic() < until:
        areas.add(_area(page))
        page.wait_for_timeout(200)
    assert len(areas) >= 3 and float(page.inner_text("#rate")) > 1
    page.click("#camera")
    assert page.inner_text("#camera") == "Start camera"
    page.wait_for_timeout(500)
    last = page.inner_text("#area")
    page.wait_for_timeout(500)
    assert page.inner_text("#area") == last
    page.click("#camera")  # and again
    page.locator("#rate", has_text=".").wait_for()


def _numbers(page):
    return [page.inner_text(f"#{name}") for name in ("area", "size", "latency")]


def test_numbers_are_those_of_what_is_shown(visit, site, tmp_path):
    """A frame has no mm, a new picture no numbers yet; one camera runs, however often it is started."""
    _save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = visit(site, expected="422")
    page.evaluate("""() => {
      const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      window.cameras = [];
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((resolve) => setTimeout(resolve, 200));
        cameras.push(await ask(wanted));
        return cameras.at(-1);
      };
    }""")
    page.fill("#spacing", "0.5")
    page.keyboard.press("Tab")
    page.click("#camera")
    page.click("#camera")
    page.locator("#rate", has_text=".").wait_for()
    running = "() => cameras.map((one) => one.getTracks()[0].readyState)"
    assert page.evaluate(running) == ["ended", "live"]
    page.click("#camera")
    page.fill("#spacing", "0.4")
    assert "px" in page.inner_text("#area") and "mm" not in page.inner_text("#area")
    assert page.evaluate(running) == ["ended", "ended"]

    held = []
    page.route("**/predict", lambda route: held.append(route))
    page.set_input_files("#files", tmp_path / "a.png")
    page.locator('#view[aria-label="a.png, no answer yet"]').wait_for()
    assert _numbers(page) == ["–"] * 3 and page.is_disabled("#snapshot")
    held[0].fulfill(status=422, json={"error": "no answer."})
    page.locator("#message", has_text="no answer.").wait_for()
    assert _numbers(page) == ["–"] * 3
    page.unroute("**/predict")
    page.set_input_files("#files", tmp_path / "a.png")
    page.locator("#area", has_text="mm²").wait_for()
    page.set_input_files("#files", tmp_path / "broken.png")
    page.locator("#message", has_text="no image that this browser can show").wait_for()
    assert _numbers(page) == ["–"] * 3 and page.is_disabled("#snapshot")


FRAMES = """async (levels) => {
  const { segmentFrame } = await import("./model.js");
  const frames = levels.map((level) => new ImageData(new Uint8ClampedArray(64).fill(level), 4, 4));
  const late = new Promise((resolve) => setTimeout(resolve, 10000, "late"));
  const answers = await Promise.race([late, Promise.all(frames.map(segmentFrame))]);
  return answers === "late" ? answers : answers.map((answer) => answer.probability[0]);
}"""


def test_every_frame_has_its_own_answer(visit, site):
    page = visit(site)
    assert page.evaluate(FRAMES, [10, 200, 60]) == [10, 200, 60]


def test_by_keyboard_alone(visit, site, tmp_path):
    """A folder of pictures, in the order of their numbers."""
    images = {
        name: _save(tmp_path / name, height=40 + i)
        for i, name in enumerate(("2.png", "10.png", "11.png"))
    }
    page = visit(site)
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("o")
    chooser.value.set_files([tmp_path / name for name in images])
    for name in images:
        page.locator("#size", has_text=f"60 × {len(images[name])}").wait_for()
        assert page.input_value("#names") == name
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.locator("#size", has_text="60 × 41").wait_for()
    for _ in range(30):  # every control can be reached, and shows that it is
        page.keyboard.press("Tab")
        if page.locator("#threshold:focus").count():
            break
    before = _area(page)
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    assert page.input_value("#threshold") == "0.1" and _area(page) > before
    assert (
        page.locator("#names").evaluate("e => e.selectedIndex") == 1
    )  # the arrows moved the slider


def test_what_is_no_picture_is_said(visit, site, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    page = visit(site)
    page.set_input_files("#files", tmp_path / "notes.txt")
    page.locator("#message", has_text="no image among these files").wait_for()
    page.set_input_files("#files", tmp_path / "broken.png")
    page.locator(
        "#message", has_text="broken.png is no image that this browser can show"
    ).wait_for()
    _save(tmp_path / "<img src=x onerror=alert(1)>.png")
    page.set_input_files("#files", tmp_path / "<img src=x onerror=alert(1)>.png")
    page.locator("#area", has_text="px").wait_for()
    assert page.inner_text("#message") == "" and page.locator("img").count() == 0


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_it_fits_the_screen(width, height, visit, site, tmp_path):
    _save(tmp_path / "a.png")
    page = visit(site, width=width, height=height)
    page.set_input_files("#files", tmp_path / "a.png")
    page.locator("#area", has_text="px").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    for button in ("open", "camera", "snapshot"):
        box = page.locator(f"#{button}").bounding_box()
        assert box["height"] >= 40 and box["x"] + box["width"] <= width


def test_several_classes(visit, tmp_path):
    image = _save(tmp_path / "a.png", bright=120)
    predictor = make_predictor(grey_levels, ("grey", "bright"))
    with running(predictor) as site:
        page = visit(site)
        page.set_input_files("#files", tmp_path / "a.png")
        (mask,) = segment_images(predictor, [image], ["a"], 1)
        areas = [f"{name}: {(mask == i).sum()} px" for i, name in enumerate(("grey", "bright"), 1)]
        page.locator("#area", has_text="; ".join(areas)).wait_for()
        assert page.is_hidden("#threshold-label")
        page.reload()  # the cookie is enough
        page.locator("body[data-ready=yes]").wait_for()
