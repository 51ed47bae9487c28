"""The live page as a folder of files: the model runs in the browser, and no server knows of a picture."""

import base64
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence

from fewshotseg import files
from fewshotseg.errors import InputError

STATIC = pathlib.Path(__file__).parent / "static"
RUNTIME = "onnxruntime-web-1.30.0.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGES = {
    "index.html": "index.html", "style.css": "style.css", "icon.svg": "icon.svg", "app.js": "app.js",
    "drawing.js": "drawing.js", "model_in_browser.js": "model.js", "model_worker.js": "model_worker.js",
    "onnxruntime-web-licence.txt": "onnxruntime-web-licence.txt",
}  # fmt: skip
MODEL_FILES = ("model.onnx", "model.json")
README = "README.txt"
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'; "
    "object-src 'none'"
)
_README = """The model as a page that needs no server of its own: pictures never leave the browser.

  python -m http.server --bind 127.0.0.1 8000

in this folder, then open http://127.0.0.1:8000. Any web server will do; with https, phones have the camera.
ONNX Runtime Web is Microsoft's, under the MIT licence: onnxruntime-web-licence.txt.
A research tool: not a medical device, not for diagnosis.
"""


def write_site(
    exported: pathlib.Path, output_dir: pathlib.Path, log: Callable[[str], None] = print
) -> None:
    """Writes the page with an exported model.

    ONNX Runtime Web (14 MB, an npm package) is taken from `RUNTIME` in the current folder, or fetched by
    `npm pack`; its checksum is compared either way.

    Args:
      exported: the folder of `export.export_model`, with model.onnx.
      output_dir: made if missing.
      log: receives lines for people.

    Raises:
      InputError: no ONNX file, no ONNX Runtime Web, or another one than was expected.
    """
    if not (exported / "model.onnx").is_file():
        raise InputError(
            f"{exported}: the page needs model.onnx: pip install 'fewshotseg[onnx]' and export again."
        )
    about = json.loads((exported / "model.json").read_text(encoding="utf-8"))
    check_mask_values(about["mask_values"])
    found = _runtime(log)
    for name, data in found.items():
        files.write_bytes(output_dir / name, data)
    for name, target in PAGES.items():
        files.write_bytes(output_dir / target, _page(name))
    for name in MODEL_FILES:
        files.write_bytes(output_dir / name, (exported / name).read_bytes())
    files.write_text(output_dir / README, _README)


def remove_site(output_dir: pathlib.Path) -> None:
    """Deletes what `write_site` writes; other files of the folder stay, and the folder with them."""
    for name in (*PAGES.values(), *RUNTIME_FILES, *MODEL_FILES, README):
        (output_dir / name).unlink(missing_ok=True)
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        output_dir.rmdir()


def check_mask_values(values: Sequence[int]) -> None:
    """Raises `InputError` where the values of masks do not fit into 8 bits, in which a browser draws."""
    if max(values) > 255:
        raise InputError(
            f"class_ids has {max(values)}, and a page in a browser saves masks of 8 bits, up to 255: use "
            "--mode=predict."
        )


def _page(name: str) -> bytes:
    data = (STATIC / name).read_bytes()
    if name != "index.html":
        return data
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return re.sub(rb'(<meta charset="utf-8">)', rf"\1\n{policy}".encode(), data)


def _runtime(log) -> dict[str, bytes]:
    """The two files of ONNX Runtime Web."""
    own = pathlib.Path(RUNTIME)
    if own.is_file():
        return _unpack(own)
    npm, package = shutil.which("npm"), RUNTIME.removesuffix(".tgz")
    name, _, version = package.rpartition("-")
    remedy = f"put {RUNTIME} (npm pack {name}@{version}) into the current folder"
    if npm is None:
        raise InputError(f"the page needs ONNX Runtime Web, and there is no npm: {remedy}.")
    log(f"Fetching {name} {version} with npm ...")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{name}@{version}", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not pathlib.Path(folder, RUNTIME).is_file():
            raise InputError(f"npm could not fetch ONNX Runtime Web: {remedy}.")
        return _unpack(pathlib.Path(folder, RUNTIME))


def _unpack(archive: pathlib.Path) -> dict[str, bytes]:
    data = archive.read_bytes()
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
        raise InputError(
            f"{archive}: is not the file that was published: delete it, and fetch it again."
        )
    with tarfile.open(archive) as packed:
        return {n: packed.extractfile(f"package/dist/{n}").read() for n in RUNTIME_FILES}
