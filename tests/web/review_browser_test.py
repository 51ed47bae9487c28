"""The review page in a real browser, used as a rater would: by keyboard, by brush, in two tabs."""

import contextlib
import io

import numpy as np
import pytest
import reviewing
from PIL import Image
from serving import running

from fewshotseg.runs import ratings as store
from fewshotseg.web import review


@contextlib.contextmanager
def served(folder, **options):
    session = reviewing.make_session(folder, **options)
    with running(app=review.create_app(session, "a run")) as site:
        yield session, site


def _answers(session):
    return store.active(store.read(session.path))


def _wait_for(page, number, session):
    for _ in range(200):
        if len(_answers(session)) == number:
            page.locator('body[data-pending="0"]').wait_for()
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"{len(_answers(session))} answers, not {number}")


def test_sixty_pairs_are_rated_by_keyboard_alone(visit, tmp_path):
    """Five sheets, one after the other; what was pressed is what is in the file, in that order."""
    with served(tmp_path) as (session, site):
        page = visit(site)
        pressed = []
        for number in range(60):
            page.locator("#progress", has_text=f"Sheet {number // 12 + 1} ·").wait_for()
            if number == 3:
                page.keyboard.press("b")  # a tag, before the answer
            key = "123"[number % 3]
            page.keyboard.press(key)
            pressed.append({"1": "reject", "2": "unsure", "3": "accept"}[key])
        _wait_for(page, 60, session)
        rows = _answers(session)
        assert [row["answer"] for row in rows] == pressed
        assert rows[3]["tags"] == ["border"] and all(row["ms"] >= 0 for row in rows)
        order = [i for sheet in session._sheets[:5] for i in sheet]
        assert [row["item"] for row in rows] == order
        page.locator("#progress", has_text="60 rated by rater").wait_for()
        found = store.consistency(rows)["rater"]
        if found["real"]:
            text = f"hidden real images accepted: {found['real_accepted']:g} of {found['real']}"
            page.locator("#progress", has_text=text).wait_for()
        assert found["repeats"]
        text = f"same answer again: {found['same']} of {found['repeats']}"
        page.locator("#progress", has_text=text).wait_for()


def test_undo_reload_and_the_sheet_before(visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site)
        for key in "311":
            page.keyboard.press(key)
        _wait_for(page, 3, session)
        page.locator("#progress", has_text="3 rated by rater").wait_for()
        page.keyboard.press("u")
        _wait_for(page, 2, session)
        page.locator('.pair[aria-selected="true"][data-answer=""]').wait_for()
        page.keyboard.press("2")
        _wait_for(page, 3, session)
        page.reload()  # nothing is lost
        page.locator("body[data-ready=yes]").wait_for()
        answers = page.locator(".pair").evaluate_all("all => all.map((e) => e.dataset.answer)")
        assert answers == ["accept", "reject", "unsure", *[""] * 9]
        assert page.locator(".pair").nth(3).get_attribute("aria-selected") == "true"
        for _ in range(9):
            page.keyboard.press("3")
        page.locator("#progress", has_text="Sheet 2").wait_for()
        page.keyboard.press("u")  # takes back the last answer of the sheet before, and goes there
        page.locator("#progress", has_text="Sheet 1").wait_for()
        _wait_for(page, 11, session)
        page.keyboard.press("1")
        page.locator("#progress", has_text="Sheet 2").wait_for()
        page.keyboard.press("PageUp")
        page.locator("#progress", has_text="Sheet 1").wait_for()
        assert page.locator('.pair[data-answer="reject"]').count() == 2
        page.reload()
        page.locator("body[data-ready=yes]").wait_for()
        page.keyboard.press("u")  # the tab is still the same one
        _wait_for(page, 11, session)


def test_a_reload_in_the_middle_of_an_answer(visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site)
        page.keyboard.press("1")
        page.reload()
        page.locator("body[data-ready=yes]").wait_for()
        for _ in range(200):
            if _answers(session):
                break
            page.wait_for_timeout(25)
        assert len(_answers(session)) == 1


def test_two_tabs_share_a_sheet_and_undo_their_own(visit, tmp_path):
    with served(tmp_path) as (session, site):
        one = visit(site)
        two = visit(site, context=one.context)
        for _ in range(4):
            one.keyboard.press("1")
            two.keyboard.press("ArrowRight")
        two.keyboard.press("3")
        _wait_for(one, 5, session)
        assert len({row["tab"] for row in _answers(session)}) == 2
        one.keyboard.press("u")
        _wait_for(one, 4, session)
        assert sorted(row["answer"] for row in _answers(session)) == ["accept"] + ["reject"] * 3
        two.reload()
        two.locator("body[data-ready=yes]").wait_for()
        state = two.locator(".pair").evaluate_all("all => all.map((e) => e.dataset.answer)")
        assert state[:5] == ["reject", "reject", "reject", "", "accept"]


def _drag(page, start, end):
    box = page.locator("#big").bounding_box()
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=4)
    page.mouse.up()


def test_the_brush_stores_a_corrected_pair_and_draws_for_another_mask(visit, tmp_path):
    with served(tmp_path, real_share=0.0) as (session, site):
        page = visit(site)
        items = session._sheets[0]
        before = session.pair(items[0])
        page.keyboard.press("p")
        assert page.is_visible("#brush") and page.is_visible("#big")
        _drag(page, (0.1, 0.1), (0.4, 0.1))
        _drag(page, (0.8, 0.8), (0.9, 0.9))
        page.keyboard.press("u")  # the second stroke
        page.keyboard.press("s")
        _wait_for(page, 1, session)
        page.locator('.pair[data-answer="corrected"]').wait_for()
        (row,) = _answers(session)
        assert row["item"] == items[0] and row["answer"] == "corrected"
        with Image.open(tmp_path / "masks" / f"synthetic_{row['label']}.png") as picture:
            right = np.asarray(picture)
        assert (right[8:] == before.mask[8:]).all()  # but for the stroke, as it was
        assert right[3, 4:12].all() and not before.mask[3, 4:12].all()
        with Image.open(tmp_path / "images" / f"synthetic_{row['label']}.png") as picture:
            np.testing.assert_array_equal(picture, before.image)

        selected = page.locator('.pair[aria-selected="true"]')
        assert page.locator(".pair").nth(1).get_attribute("aria-selected") == "true"
        place = next(i for i in range(1, 12) if session.pair(items[i]).number % 7 != 6)
        for _ in range(place - 1):
            page.keyboard.press("ArrowRight")
        old = session.pair(items[place])
        page.keyboard.press("p")
        page.check("#erase")
        row, column = (int(x.mean()) for x in np.nonzero(old.mask))
        spot = (column + 0.5) / reviewing.SIZE, (row + 0.5) / reviewing.SIZE
        _drag(page, spot, spot)
        page.click("#redraw")
        page.locator("#large-message", has_text="Drawn anew").wait_for()
        assert page.locator(".pair").count() == 13
        page.keyboard.press("z")  # closes it
        new = session.pair(session._sheets[0][place + 1])
        assert new.mask[row, column] == 0 and new.image[row, column, 0] == 60
        page.keyboard.press("1")
        _wait_for(page, 2, session)
        assert _answers(session)[1]["kind"] == "redraw"
        assert selected.count() == 1


def test_nothing_is_answered_while_a_sheet_loads(visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site, expected="ERR_FAILED")
        held = []
        page.route("**/image/*", lambda route: held.append(route))
        page.keyboard.press("PageDown")
        for _ in range(200):
            if len(held) == 12:
                break
            page.wait_for_timeout(25)
        assert page.locator("#grid.waiting").count() == 1
        assert page.locator("#grid").evaluate("e => getComputedStyle(e).opacity") == "0.4"
        for key in ("1", "t", "p", "s", "PageDown", "Escape"):
            page.keyboard.press(key)
        for route in held:
            route.continue_()
        page.unroute("**/image/*")
        page.locator("#progress", has_text="Sheet 2").wait_for()
        assert page.locator("#grid.waiting").count() == 0
        assert not _answers(session) and len(session._sheets) == 2
        page.keyboard.press("1")
        _wait_for(page, 1, session)
        assert _answers(session)[0]["item"] == session._sheets[1][0]
        assert page.evaluate("() => document.querySelectorAll('.pair').length") == 12
        page.route("**/sheet?*", lambda route: route.abort())  # one that cannot be loaded
        page.keyboard.press("PageDown")
        page.locator("#message", has_text="does not answer").wait_for()
        page.locator('body[data-pending="0"]').wait_for()
        page.unroute("**/sheet?*")
        page.keyboard.press("2")
        _wait_for(page, 2, session)


def test_a_large_mask_is_stored_for_the_pair_it_was_painted_on(visit, tmp_path, monkeypatch):
    """Larger than the 64 KiB that browsers allow of requests that outlive a page."""
    monkeypatch.setattr(reviewing, "SIZE", 300)
    options = dict(num_pairs=20, num_shown=4, real_share=0.0, repeat_share=0.0)
    with served(tmp_path, **options) as (session, site):
        page = visit(site)
        page.keyboard.press("p")
        _drag(page, (0.1, 0.1), (0.4, 0.1))
        page.keyboard.press("PageDown")
        page.keyboard.press("s")
        _wait_for(page, 1, session)
        (row,) = _answers(session)
        first, second, *_ = session._sheets[0]
        assert (row["item"], row["answer"]) == (first, "corrected") and len(session._sheets) == 1
        with Image.open(tmp_path / "masks" / f"synthetic_{row['label']}.png") as picture:
            assert (np.asarray(picture)[100:] == session.pair(first).mask[100:]).all()

        page.keyboard.press("ArrowLeft")
        page.keyboard.press("t")
        page.locator("#message", has_text="undo that (u) to change its tags").wait_for()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(50)
        page.keyboard.press("3")
        _wait_for(page, 2, session)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("b")
        for _ in range(200):
            row = _answers(session)[-1]
            if row["tags"]:
                break
            page.wait_for_timeout(25)
        assert (row["item"], row["tags"]) == (second, ["border"]) and row["ms"] >= 50


def _orange(page, locator):
    with Image.open(io.BytesIO(page.locator(locator).screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.abs(pixels - (230, 159, 0)).max(-1) < 12).sum())


def test_outline_zoom_and_the_nearest_real_image(visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site)
        tile = ".pair:nth-child(2) canvas"
        assert _orange(page, tile) > 50
        page.keyboard.press("o")
        assert _orange(page, tile) < 10
        page.keyboard.press("o")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("z")
        assert page.is_visible("#big") and _orange(page, "#big") > 100
        page.keyboard.press("n")
        page.locator("#nearest-text", has_text="correlation").wait_for()
        size = page.locator("#nearest-image").evaluate("e => [e.width, e.height]")
        assert size == [reviewing.SIZE] * 2
        expected = session.nearest(session._sheets[0][1])[1]
        assert f"{expected:.3f}" in page.inner_text("#nearest-text")
        page.keyboard.press("3")  # rated while it is large: the next one is shown
        _wait_for(page, 1, session)
        assert page.is_visible("#big")
        page.keyboard.press("Escape")
        assert not page.is_visible("#big")


def test_an_answer_that_cannot_be_written_is_taken_off_the_screen(visit, tmp_path):
    with served(tmp_path / "review") as (session, site):
        page = visit(site, expected="507")
        page.route("**/rate", lambda route: route.fulfill(
            status=507, json={"error": "the answer could not be written: free some space."}
        ))  # fmt: skip
        page.context.set_default_timeout(5000)
        page.keyboard.press("1")
        page.locator("#message", has_text="could not be written").wait_for()
        page.locator('.pair[data-answer="reject"]').wait_for(state="detached")
        page.unroute("**/rate")
        page.keyboard.press("1")
        _wait_for(page, 1, session)


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_it_fits_the_screen(width, height, visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site, width=width, height=height)
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        for button in ("reject", "unsure", "accept", "undo"):
            box = page.locator(f"#{button}").bounding_box()
            assert box["height"] >= 40 and box["x"] + box["width"] <= width
        page.click("#accept")  # by finger
        _wait_for(page, 1, session)
        page.click("#zoom")
        page.click("#paint")
        assert page.evaluate("() => document.documentElement.scrollWidth") == width
        box = page.locator("#large").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert page.locator("#correct").bounding_box()["height"] >= 40


def test_names_of_raters_are_kept_and_harm_nothing(visit, tmp_path):
    with served(tmp_path) as (session, site):
        page = visit(site)
        name = '<img src=x onerror="alert(1)">'
        page.fill("#rater", name)
        page.keyboard.press("Tab")
        page.locator("#progress", has_text=f"rated by {name}").wait_for()
        page.locator(".pair").first.click()
        page.keyboard.press("3")
        _wait_for(page, 1, session)
        assert _answers(session)[0]["rater"] == name and page.locator("img[src=x]").count() == 0
