"""The page that needs no server: what it is made of, and that a browser predicts with it as models do."""

import contextlib
import functools
import http.server
import pathlib
import shutil
import subprocess
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from fewshotseg.errors import InputError
from fewshotseg.results import export
from fewshotseg.results.predictor import create_network, create_predictor, probabilities_of
from fewshotseg.web import static_site


@pytest.fixture(scope="module")
def predictor():
    config = {
        "data": {"image_size": 32, "channels": 3},
        "segmenter": {"name": "unet", "unet": {"width": 4, "num_levels": 2}},
        "evaluate": {"threshold": 0.5},
    }
    weights = create_network(config, 2).init(jax.random.key(1))
    weights["logits"]["kernel"] = 3.0 * weights["logits"]["kernel"]
    return create_predictor(config, weights, ["lesion"], "test")


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory):
    return export.export_model(predictor, tmp_path_factory.mktemp("exported"), {"model": "mine"})


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder with ONNX Runtime Web."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("runtime")
    if npm is None:
        pytest.skip("no npm on this machine")
    name, _, version = static_site.RUNTIME.removesuffix(".tgz").rpartition("-")
    try:
        command = [npm, "pack", f"{name}@{version}", "--silent"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot fetch ONNX Runtime Web here")
    return folder


def test_what_is_missing_is_named(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"needs model.onnx: pip install 'fewshotseg\[onnx\]'"):
        static_site.write_site(tmp_path, tmp_path / "site")
    monkeypatch.setattr(static_site.shutil, "which", lambda name: None)
    with pytest.raises(
        InputError, match=r"no npm: put onnxruntime-web-.*\(npm pack onnxruntime-web@"
    ):
        static_site.write_site(exported, tmp_path / "site")
    pathlib.Path(static_site.RUNTIME).write_bytes(b"something else")
    with pytest.raises(InputError, match="is not the file that was published"):
        static_site.write_site(exported, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_page_of_an_earlier_model_is_taken_away(exported, tmp_path, monkeypatch):
    runtime = dict.fromkeys(static_site.RUNTIME_FILES, b"")
    monkeypatch.setattr(static_site, "_runtime", lambda log: runtime)
    for own in ("", "notes.txt"):
        static_site.write_site(exported, tmp_path / "web")
        if own:
            (tmp_path / "web" / own).write_text("of the user")
        static_site.remove_site(tmp_path / "web")
        assert [p.name for p in tmp_path.rglob("*")] == (["web", own] if own else [])
    static_site.remove_site(tmp_path / "none")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def _served(folder, **types):
    """The address of a plain file server; `types` of files by their ending."""

    class Handler(_Quiet):
        extensions_map = {
            **_Quiet.extensions_map,
            **{f".{end}": kind for end, kind in types.items()},
        }

    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_browser_predicts_as_the_model(
    predictor, exported, runtime, browser, tmp_path, monkeypatch
):
    monkeypatch.chdir(runtime)
    static_site.write_site(exported, tmp_path / "site")
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((75, 50), Image.Resampling.BICUBIC))
    Image.fromarray(image).save(tmp_path / "a.png")
    (wanted,) = probabilities_of(predictor, [image], ["a"], 1)
    area = int((np.rint(255 * wanted) >= 127.5).sum())
    unsure = int((np.abs(wanted - 0.5) < 0.5 / 255 + 1e-4).sum())
    assert 100 < area < 3650 and unsure < 30

    asked, wrong = [], []
    with _served(tmp_path / "site") as address, browser.new_context() as context:
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.goto(address)
        page.locator("body[data-ready=yes]").wait_for(timeout=120_000)
        page.set_input_files("#files", tmp_path / "a.png")
        page.locator("#area", has_text="px").wait_for(timeout=60_000)
        found = int(page.inner_text("#area").split()[1].replace(",", ""))
        assert page.inner_text("#size") == "75 × 50" and "mine" in page.inner_text("#model")
    assert abs(found - area) <= unsure
    assert not wrong and not [url for url in asked if not url.startswith((address, "blob:"))]


RUNTIME = """export const env = { wasm: {} };
export const InferenceSession = { create: async () => ({}) };
"""


def test_what_the_page_cannot_do_it_says(exported, browser, tmp_path, monkeypatch):
    """A server that sends modules with a type that browsers refuse; pictures of 16 bits."""
    runtime = dict.fromkeys(static_site.RUNTIME_FILES, RUNTIME.encode())
    monkeypatch.setattr(static_site, "_runtime", lambda log: runtime)
    static_site.write_site(exported, tmp_path / "site")
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(tmp_path / "deep.png")
    with browser.new_context() as context:
        page = context.new_page()
        with _served(tmp_path / "site", mjs="text/plain") as address:
            page.goto(address)
            page.locator("#message", has_text=".mjs files as text/javascript").wait_for()
        with _served(tmp_path / "site") as address:
            page.goto(address)
            page.locator("body[data-ready=yes]").wait_for()
            page.set_input_files("#files", tmp_path / "deep.png")
            page.locator("#message", has_text="deep.png has 16 bits per channel").wait_for()
