"""Who may talk to the local server: as Jupyter does it, for a page on one's own machine.

Whoever opens the printed address has the token in it, and gets a cookie for it. Other pages in the same
browser are kept out by the cookie (SameSite=Strict), by the Origin that browsers send with every POST and
WebSocket, and by the Host they name (against DNS rebinding). No answer has a traceback in it.
"""

import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HTTP = 80  # the port that browsers do not name


class Guard:
    """An ASGI application around another one, which sees only what is let through.

    Attributes:
      token: of the address, random.

    Args:
      app: the other one.
      host: that the server listens on.
      port: likewise.
    """

    def __init__(self, app, host: str, port: int):
        self._app, self._host, self._port = app, host, port
        self.token, self._session = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        # Cookies do not tell ports apart: two servers of one browser need two names.
        self._cookie = f"fewshotseg-{port}"

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        refusal = self._refusal(request)
        if scope["type"] == "websocket":
            if refusal:
                await receive()
                await send({"type": "websocket.close", "code": 1008})  # before accepting: HTTP 403
            else:
                await self._app(scope, receive, send)
            return
        send = with_headers(
            send, _headers("" if self._bad_host(request) else request.headers["host"])
        )
        token = request.query_params.get("token")
        if not self._bad_host(request) and scope["method"] == "GET" and token:
            if hmac.compare_digest(token.encode(), self.token.encode()):
                response = RedirectResponse("/", 303)  # the history keeps no token
                response.set_cookie(
                    self._cookie, self._session, httponly=True, samesite="strict", path="/"
                )
                await response(scope, receive, send)
                return
        if refusal:
            await JSONResponse({"error": refusal}, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, request: HTTPConnection) -> str:
        if self._bad_host(request):
            return "This server does not answer to that name."
        cookie = request.cookies.get(self._cookie, "")
        if not hmac.compare_digest(cookie.encode(), self._session.encode()):
            return "Open the address that was printed at the start: it has a token in it."
        if request.scope["type"] == "websocket" or request.scope["method"] not in ("GET", "HEAD"):
            origin = urlsplit(request.headers.get("origin", ""))
            if origin.scheme not in ("http", "https") or origin.netloc != request.headers["host"]:
                return "Only the page of this server itself may ask that."
        return ""

    def _bad_host(self, request: HTTPConnection) -> bool:
        given = request.headers.get("host", "")
        if self._port == HTTP and not given.rpartition(":")[2].isdecimal():
            given += f":{HTTP}"
        host, _, port = given.rpartition(":")
        if port != str(self._port):
            return True
        if host in (*LOOPBACK, self._host):
            return False
        # Listening for other machines, a number is as good as another: only names can be rebound.
        return is_loopback(self._host) or not _is_address(host)


def _headers(host: str) -> Mapping[str, str]:
    # Not every browser counts a WebSocket as 'self'.
    sockets = f"; connect-src 'self' ws://{host}" if host else ""
    return {
        "Content-Security-Policy": f"default-src 'self'{sockets}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; object-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


def with_headers(send, headers: Mapping[str, str]):
    """`send` of an HTTP request that adds headers to whatever is answered."""
    added = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def send_with(message):
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return send_with


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
