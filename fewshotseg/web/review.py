"""The page on which people rate synthetic pairs; it knows pictures, masks and answers, and no training.

Whoever made the session (`training/review.py`) decides what is shown and keeps the answers. Nothing that is
sent is decoded: a mask comes as one byte per pixel, and must be exactly as long as the picture has pixels.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import anyio
import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fewshotseg.errors import InputError
from fewshotseg.runs.ratings import csv_of
from fewshotseg.web.server import hide, read_body, static_routes

PAGES = {
    "/": ("review.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/review.css": ("review.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/review.js": ("review.js", "text/javascript"),
    "/brush.js": ("brush.js", "text/javascript"),
}
MOST_JSON = 4096  # bytes
BYTES = "application/octet-stream"
MOST_LETTERS = 40  # of a rater's name


class Session(Protocol):
    """What is rated, see `training/review.py`; every function may be called from any thread."""

    def describe(self) -> Mapping[str, Any]: ...
    def sheet(self, number: int | None, rater: str) -> Mapping[str, Any]: ...
    def progress(self, rater: str) -> Mapping[str, Any]: ...
    def pair(self, item: str) -> Any: ...
    def nearest(self, item: str) -> tuple[np.ndarray, float]: ...
    def rate(self, item, answer, tags, rater, tab, ms) -> None: ...
    def correct(self, item, mask, rater, tab, ms) -> None: ...
    def redraw(self, item, mask) -> int: ...
    def undo(self, rater, tab) -> Mapping[str, Any] | None: ...
    def table(self) -> list[dict[str, Any]]: ...


def create_app(session: Session, name: str) -> Starlette:
    """The page and what is behind it, without the guard (`security.Guard`).

    Args:
      session: what is rated.
      name: of the run, for the page.
    """
    about = {**session.describe(), "name": name}
    shape = about["height"], about["width"]

    async def describe(request: Request) -> Response:
        return JSONResponse(about)

    def answering(function: Callable) -> Callable:
        """What is wrong with a question is said in a sentence."""

        async def answer(request: Request) -> Response:
            try:
                return await function(request)
            except (KeyError, IndexError):
                return JSONResponse(
                    {"error": "There is no such pair here: load the page anew."}, 404
                )
            except TimeoutError:
                return JSONResponse({"error": "That took too long to arrive."}, 408)
            except InputError as error:
                return JSONResponse({"error": str(error)}, 422)

        return answer

    async def sheet(request: Request) -> Response:
        number = request.query_params.get("number", "")
        if number and not (number.isdecimal() and len(number) < 7):
            raise InputError("the number of a sheet is a number.")
        rater = _name(request.query_params.get("rater", ""))
        args = int(number) if number else None, rater
        return JSONResponse(await anyio.to_thread.run_sync(session.sheet, *args))

    async def picture(request: Request) -> Response:
        return _png(session.pair(request.path_params["item"]).image)

    async def mask(request: Request) -> Response:
        found = session.pair(request.path_params["item"]).mask
        return Response(np.ascontiguousarray(found, np.uint8).tobytes(), media_type=BYTES)

    async def nearest(request: Request) -> Response:
        image, correlation = session.nearest(request.path_params["item"])
        return _png(image, {"X-Correlation": f"{correlation:.3f}"})

    async def rate(request: Request) -> Response:
        given = await _json(request)
        tags = given.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise InputError("tags are a list of texts.")
        args = _text(given, "item"), _text(given, "answer"), tags, *_who(given)
        await anyio.to_thread.run_sync(session.rate, *args)
        return JSONResponse(await anyio.to_thread.run_sync(session.progress, args[3]))

    async def undo(request: Request) -> Response:
        given = await _json(request)
        rater, tab, _ = _who({**given, "ms": 0})
        return JSONResponse(await anyio.to_thread.run_sync(session.undo, rater, tab) or {})

    async def correct(request: Request) -> Response:
        painted = await _mask(request)
        args = request.path_params["item"], painted, *_who(request.query_params)
        await anyio.to_thread.run_sync(session.correct, *args)
        return JSONResponse({})

    async def redraw(request: Request) -> Response:
        painted = await _mask(request)
        item = request.path_params["item"]
        return JSONResponse(
            {"sheet": await anyio.to_thread.run_sync(session.redraw, item, painted)}
        )

    async def table(request: Request) -> Response:
        head = {"Content-Disposition": 'attachment; filename="ratings.csv"'}
        return Response(csv_of(session.table()), media_type="text/csv", headers=head)

    async def _mask(request):
        data = await read_body(request, shape[0] * shape[1])
        if data is None or len(data) != shape[0] * shape[1]:
            raise InputError("a mask has one byte per pixel of the picture.")
        return np.frombuffer(data, np.uint8).reshape(shape)

    def get(path, function):
        return Route(path, answering(function))

    def post(path, function):
        return Route(path, answering(function), methods=["POST"])

    routes = [
        *static_routes(PAGES),
        Route("/about.json", describe),
        get("/sheet", sheet),
        get("/image/{item}", picture),
        get("/mask/{item}", mask),
        get("/nearest/{item}", nearest),
        get("/ratings.csv", table),
        post("/rate", rate),
        post("/undo", undo),
        post("/correct/{item}", correct),
        post("/redraw/{item}", redraw),
    ]
    return Starlette(routes=routes, exception_handlers={Exception: hide})


def _png(image: np.ndarray, headers: Mapping[str, str] | None = None) -> Response:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return Response(buffer.getvalue(), media_type="image/png", headers=dict(headers or {}))


async def _json(request: Request) -> Mapping[str, Any]:
    data = await read_body(request, MOST_JSON)
    try:
        given = json.loads(data or b"")
    except (ValueError, RecursionError) as error:
        raise InputError("that is no JSON, or too much of it.") from error
    if not isinstance(given, dict):
        raise InputError("a JSON object is wanted.")
    return given


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"{name} is a text.")
    return value


def _who(given: Mapping[str, Any]) -> tuple[str, str, int]:
    """Rater, tab, and milliseconds that the answer took."""
    try:
        ms = int(float(given.get("ms", 0)))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("ms is a number.") from error
    return _name(_text(given, "rater")), _name(_text(given, "tab")), ms


def _name(text: str) -> str:
    if not text.strip() or len(text) > MOST_LETTERS or not text.isprintable():
        raise InputError(f"give a name of 1 to {MOST_LETTERS} letters.")
    return text.strip()
