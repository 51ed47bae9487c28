"""A real browser for the pages; its tests are skipped where there is none."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """Opens the page of a server; at the end, nothing was asked of anyone else, nothing went wrong.

    `context=` of an earlier page makes a second tab of the same browser; lines of the console with
    `expected=` in them are not wrong.
    """
    contexts, asked, wrong, addresses = [], [], [], []

    def open_page(site, context=None, expected=None, **size):
        guard, address = site
        if context is None:
            context = browser.new_context(viewport=size or {"width": 1280, "height": 800})
            contexts.append(context)
            context.on("request", lambda request: asked.append(request.url))
        addresses.append(address)
        page = context.new_page()
        page.on("websocket", lambda opened: asked.append(opened.url.replace("ws", "http", 1)))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # A listener takes effect some time after it is asked for: too late for a key pressed at once.
        page.on("filechooser", lambda chooser: None)

        def note(line):
            if line.type == "error" and not (expected and expected in line.text):
                wrong.append(line.text)

        page.on("console", note)
        page.goto(f"{address}/?token={guard.token}")
        page.locator("body[data-ready=yes]").wait_for()
        assert page.url == f"{address}/"
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not [url for url in asked if not url.startswith((*addresses, "blob:", "data:"))]
    assert not wrong
