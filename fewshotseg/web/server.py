"""The local servers of the pages, and the live page: nothing of it is kept, no request is logged."""

import asyncio
import socket
from collections.abc import Callable, Mapping

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewshotseg.errors import InputError
from fewshotseg.results.predictor import Predictor
from fewshotseg.web import live, security
from fewshotseg.web.static_site import STATIC, check_mask_values

PAGES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/app.js": ("app.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/model.js": ("model_on_server.js", "text/javascript"),
}
HEADER_SECONDS = 10.0  # for the head of a request
BODY_SECONDS = 60.0  # for a picture
MOST_CONNECTIONS = 100
PLAIN_PURPOSE = "A research tool: not a medical device, not for diagnosis."


def create_app(predictor: Predictor, name: str) -> Starlette:
    """The pages and the model behind them, without the guard.

    Args:
      predictor: the model.
      name: of the model, for the page.

    Raises:
      InputError: masks with values above 255.
    """
    check_mask_values(predictor.mask_values)
    model = live.LiveModel(predictor)
    about = {
        "name": name,
        "class_names": list(predictor.class_names),
        "mask_values": list(predictor.mask_values),
        "threshold": predictor.threshold,
        "max_megapixels": live.MAX_MEGAPIXELS,
    }

    async def describe(request: Request) -> Response:
        return JSONResponse(about)

    async def predict(request: Request) -> Response:
        try:
            data = await read_body(request, live.MAX_BODY)
        except TimeoutError:
            return JSONResponse({"error": "The picture took too long to arrive."}, 408)
        if data is None:
            most = f"{live.MAX_BODY // 2**20} MB"
            return JSONResponse({"error": f"The file is too large: at most {most}."}, 413)
        try:
            answer = await anyio.to_thread.run_sync(model.segment_file, data)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 422)
        return Response(answer, media_type="application/octet-stream")

    async def frames(socket: WebSocket) -> None:
        """One frame, one answer: who asks for the next before, waits."""
        await socket.accept()
        try:
            while True:
                data = await socket.receive_bytes()
                await socket.send_bytes(await anyio.to_thread.run_sync(model.segment_frame, data))
        except (InputError, KeyError):  # KeyError: a text where bytes are due
            await socket.close(1003)
        except WebSocketDisconnect:
            pass

    routes = [
        *static_routes(PAGES),
        Route("/model.json", describe),
        Route("/predict", predict, methods=["POST"]),
        WebSocketRoute("/frames", frames),
    ]
    return Starlette(routes=routes, exception_handlers={Exception: hide})


def static_routes(pages: Mapping[str, tuple[str, str]]) -> list[Route]:
    """Routes to files of the package: path -> (name, media type)."""

    async def page(request: Request) -> Response:
        file, kind = pages[request.url.path]
        return Response((STATIC / file).read_bytes(), media_type=kind)

    return [Route(path, page) for path in pages]


async def read_body(request: Request, most: int) -> bytes | None:
    """The body of a request; None as soon as it is longer than `most` bytes.

    Raises:
      TimeoutError: it takes longer than `BODY_SECONDS`.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > most:
        return None
    parts, total = [], 0
    async with asyncio.timeout(BODY_SECONDS):
        async for part in request.stream():
            total += len(part)
            if total > most:
                return None
            parts.append(part)
    return b"".join(parts)


async def hide(request: Request, error: Exception) -> Response:
    """The answer to whoever asked for what failed."""
    return JSONResponse({"error": "This went wrong here; the terminal says how."}, 500)


class ImpatientProtocol(H11Protocol):
    """HTTP whose connections end where the head of a request does not come in time (slow loris)."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self._watch()

    def on_response_complete(self):
        self._late.cancel()
        self._watch()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event):
        self._late.cancel()  # from here on it is another protocol's connection
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc):
        self._late.cancel()
        super().connection_lost(exc)

    def _watch(self):
        self._late = self.loop.call_later(HEADER_SECONDS, self._end_if_waiting)

    def _end_if_waiting(self):
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def serve(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Serves a page until Ctrl-C.

    Args:
      app: the page, see `create_app`.
      host: to listen on.
      port: likewise; 0 for any that is free.
      log: receives the address.

    Raises:
      InputError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # before anybody is told the address
        except OSError as error:
            raise InputError(f"--host={host} --port={port}: {error.strerror}.") from error
        port = listening.getsockname()[1]
        guard = security.Guard(app, host, port)
        shown = f"[{host}]" if ":" in host else host
        log(f"{PLAIN_PURPOSE} Ctrl-C ends it.\nOpen http://{shown}:{port}/?token={guard.token}")
        create_server(guard).run(sockets=[listening])


def create_server(guard: security.Guard) -> uvicorn.Server:
    """The server of an application, with its limits."""
    config = uvicorn.Config(
        guard,
        http=ImpatientProtocol,
        ws="websockets-sansio",
        ws_max_size=live.MAX_FRAME,
        ws_max_queue=2,
        ws_per_message_deflate=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=1,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
    )
    return uvicorn.Server(config)
