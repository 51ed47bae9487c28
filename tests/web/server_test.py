"""The live page's server: what it answers, and to whom. Attacks over real sockets; it lives on."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import io
import pathlib
import socket
import struct
import time
import types
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import brightness, grey_levels, make_predictor, running
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fewshotseg import commands
from fewshotseg.errors import InputError
from fewshotseg.labels import Labels
from fewshotseg.results.predictor import probabilities_of, segment_images
from fewshotseg.web import live, security, server


@pytest.fixture(scope="module")
def site():
    with running() as found:
        yield found


@contextlib.contextmanager
def _client(site, **headers):
    """With the cookie that the printed address is swapped for, and the Origin of the page itself."""
    guard, address = site
    headers = {"Origin": address, **headers}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        client.get("/", params={"token": guard.token})
        assert client.cookies
        yield client


def _cookie(client):
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def _png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _picture(height=37, width=50, channels=3):
    coarse = np.random.default_rng(height).integers(0, 256, (5, 5, channels), np.uint8).squeeze()
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _parse(answer):
    width, height, planes, milliseconds = live.HEAD.unpack_from(answer)
    found = np.frombuffer(answer, np.uint8, offset=live.HEAD.size)
    return found.reshape(planes, height, width), milliseconds


def _frame(image):
    return live.FRAME_HEAD.pack(image.shape[1], image.shape[0]) + image.tobytes()


# --- What it answers -----------------------------------------------------------------------------


def test_a_picture_gets_the_probabilities_of_the_model(site):
    with _client(site) as client:
        for image in (_picture(), _picture(8, 70), _picture(channels=1)):
            response = client.post("/predict", content=_png(image))
            assert response.status_code == 200
            planes, milliseconds = _parse(response.content)
            image = image.reshape(*image.shape[:2], -1)
            (wanted,) = probabilities_of(make_predictor(), [image], ["a"], 1)
            assert np.abs(planes[0] - 255.0 * wanted[..., 0]).max() <= 0.5 and len(planes) == 1
            (mask,) = segment_images(make_predictor(), [image], ["a"], 1)
            np.testing.assert_array_equal(planes[0] >= 127.5, mask)
            assert 0 < milliseconds < 60_000


def test_several_classes_have_a_plane_of_ids():
    predictor = make_predictor(grey_levels, ("grey", "bright"))
    answer = live.LiveModel(predictor).segment(_picture())
    planes, _ = _parse(answer)
    (mask,) = segment_images(predictor, [_picture()], ["a"], 1)
    np.testing.assert_array_equal(planes[1], mask)
    assert set(np.unique(mask)) == {0, 1, 2} and planes[0].max() == 255


def test_the_page_knows_the_values_of_masks_and_refuses_those_that_it_cannot_save():
    predictor = make_predictor(grey_levels, ("grey", "bright"))
    assert make_predictor().mask_values == (0, 255) and predictor.mask_values == (0, 1, 2)
    gaps = dataclasses.replace(predictor, labels=Labels((0, 3, 7)))
    (route,) = (r for r in server.create_app(gaps, "m").routes if r.path == "/model.json")
    assert b'"mask_values":[0,3,7]' in asyncio.run(route.endpoint(None)).body
    large = dataclasses.replace(predictor, labels=Labels((0, 3, 300)))
    with pytest.raises(InputError, match="class_ids has 300, .*masks of 8 bits.*--mode=predict"):
        server.create_app(large, "m")


def test_frames_are_answered_one_by_one(site):
    with _client(site) as client:
        headers = {"Cookie": _cookie(client)}
    address = site[1].replace("http", "ws") + "/frames"
    with connect(address, origin=site[1], additional_headers=headers) as frames:
        for shape in ((20, 30), (30, 20)):
            image = _picture(*shape)
            frames.send(_frame(image))
            planes, _ = _parse(frames.recv(timeout=30))
            (wanted,) = probabilities_of(make_predictor(), [image], ["a"], 1)
            assert np.abs(planes[0] - 255.0 * wanted[..., 0]).max() <= 0.5


@pytest.mark.parametrize(
    "data", [b"", b"abc", struct.pack("<HH", 4, 4) + bytes(47), _frame(_picture(1, 513))]
)
def test_a_frame_that_is_none_ends_the_connection(data, site):
    with pytest.raises(InputError, match="at most 512 pixels"):
        live.LiveModel(make_predictor()).segment_frame(data)
    with _client(site) as client:
        headers = {"Cookie": _cookie(client)}
        address = site[1].replace("http", "ws") + "/frames"
        with connect(address, origin=site[1], additional_headers=headers) as frames:
            frames.send(data)
            with pytest.raises(Exception, match="1003"):
                frames.recv(timeout=30)
        assert client.get("/model.json").json()["class_names"] == ["lesion"]


# --- To whom -------------------------------------------------------------------------------------


def test_the_token_is_swapped_for_a_cookie(site):
    guard, address = site
    with httpx.Client(base_url=address) as client:
        for path in ("/", "/app.js", "/model.json", "/?token=", "/?token=wrong", "/nothing"):
            response = client.get(path)
            assert response.status_code == 403 and "has a token in it" in response.json()["error"]
        response = client.get("/", params={"token": guard.token})
        assert response.status_code == 303 and response.headers["location"] == "/"
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert guard.token not in response.headers["set-cookie"]
        assert client.get("/").status_code == 200 and "fewshotseg" in client.get("/").text
        again = client.get("/", params={"token": guard.token})  # in a second tab
        assert again.status_code == 303 and again.headers["location"] == "/"
        client.cookies.clear()
        client.cookies.set(next(iter(response.cookies)), "forged")
        assert client.get("/").status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1"]
)
def test_another_host_is_refused(host, site):
    """DNS rebinding: the name of somebody else's page, pointed at this machine."""
    port = site[1].rpartition(":")[2]
    with _client(site) as client:
        headers = {"Host": host.format(port=port)}
        for path in ("/", f"/?token={site[0].token}"):
            response = client.get(path, headers=headers)
            assert response.status_code == 403 and "that name" in response.json()["error"]
            assert "set-cookie" not in response.headers
        assert client.get("/", headers={"Host": f"localhost:{port}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:1"])
def test_other_pages_in_the_same_browser_are_refused(origin, site):
    with _client(site, Origin=origin) as client:
        response = client.post("/predict", content=_png(_picture()))
        assert response.status_code == 403 and "itself" in response.json()["error"]
        headers = {"Cookie": _cookie(client), "Origin": origin}
        with pytest.raises(InvalidStatus, match="403"):
            connect(site[1].replace("http", "ws") + "/frames", additional_headers=headers)
    with pytest.raises(InvalidStatus, match="403"):  # nor one without the cookie
        connect(site[1].replace("http", "ws") + "/frames", origin=site[1])


def test_every_answer_binds_the_page_to_its_origin(site):
    with _client(site) as client:
        responses = [
            client.get("/"),
            client.get("/nothing"),
            client.get("/", headers={"Cookie": ""}),
        ]
        assert [r.status_code for r in responses] == [200, 404, 403]
        for response in responses:
            assert response.headers["content-security-policy"].startswith("default-src 'self';")
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"
            assert "server" not in response.headers


# --- Attacks -------------------------------------------------------------------------------------


PATHS = (
    "/../server.py", "/static/../../server.py", "/..%2fserver.py", "/%2e%2e/%2e%2e/setup.cfg",
    "//etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(path, site):
    with _client(site) as client:
        answer = _talk(site, _head(site, client, f"GET {path}") + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 404") and b"import" not in answer and b"root:" not in answer


def _head(site, client, request, *more):
    address = site[1]
    lines = [f"{request} HTTP/1.1", f"Host: {address[7:]}", f"Origin: {address}"]
    lines += [f"Cookie: {_cookie(client)}", "Connection: close", *more]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _talk(site, data, wait=20.0):
    """What comes back for raw bytes until the other side ends it."""
    host, _, port = site[1].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_body_that_is_too_long_is_not_read(site, monkeypatch):
    monkeypatch.setattr(live, "MAX_BODY", 1 << 20)
    with _client(site) as client:
        announced = _head(site, client, "POST /predict", f"Content-Length: {1 << 40}")
        assert _talk(site, announced + b"\r\n").startswith(b"HTTP/1.1 413")
        response = client.post("/predict", content=(bytes(1 << 16) for _ in range(64)))  # chunked
        assert response.status_code == 413 and response.json()["error"].endswith("at most 1 MB.")
        assert client.post("/predict", content=_png(_picture())).status_code == 200


def _bomb(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data, words",
    [
        (_bomb(30_000, 30_000), "megapixels"),
        (_bomb(5_000, 5_000), "at most 20 megapixels"),
        (_bomb(100, 100), "truncated or damaged"),
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
    ],
)
def test_what_is_no_picture_or_too_large_a_one(data, words, site):
    with _client(site) as client:
        response = client.post("/predict", content=data)
        assert response.status_code == 422 and words in response.json()["error"]
        assert "Traceback" not in response.text and "this file" not in response.json()["error"]
        assert client.post("/predict", content=_png(_picture())).status_code == 200


def test_who_sends_slowly_is_cut_off(monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(server, "BODY_SECONDS", 0.5)
    with running() as site:
        with _client(site) as client:
            started = time.monotonic()
            assert _talk(site, b"GET / HTTP/1.1\r\nX-a: b\r\n") == b""
            head = f"POST /predict HTTP/1.1\r\nHost: {site[1][7:]}\r\nOrigin: {site[1]}\r\n"
            head += (
                f"Cookie: {_cookie(client)}\r\nContent-Length: 1000\r\nConnection: close\r\n\r\nabc"
            )
            assert _talk(site, head.encode()).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 15
            headers = {"Cookie": _cookie(client)}
            address = site[1].replace("http", "ws") + "/frames"
            with connect(address, origin=site[1], additional_headers=headers) as frames:
                time.sleep(1.0)  # a camera may be paused
                frames.send(_frame(_picture()))
                assert frames.recv(timeout=30)


def test_fifty_clients_at_once(site):
    data = _png(_picture(600, 800))
    before = _resident()
    with _client(site) as client:
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            sent = [pool.submit(client.post, "/predict", content=data) for _ in range(100)]
            answers = [future.result() for future in sent]
        assert {r.status_code for r in answers} == {200}
        assert len({r.content[live.HEAD.size :] for r in answers}) == 1
        del sent, answers
        assert client.get("/").status_code == 200
    assert _resident() - before < 300


def _resident():
    """Memory of this process, in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def test_a_fault_of_the_model_is_not_shown(capsys):
    calls = []

    def fails(images):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("secret")
        return brightness(images)

    with running(make_predictor(fails)) as site, _client(site) as client:
        response = client.post("/predict", content=_png(_picture()))
        assert response.status_code == 500 and "secret" not in response.text
        assert response.json()["error"].startswith("This went wrong")


# --- The command ---------------------------------------------------------------------------------


HOSTS = {
    "127.0.0.1": True, "localhost": True, "::1": True, "127.9.9.9": True, "0.0.0.0": False,
    "192.168.1.2": False, "example.org": False,
}  # fmt: skip


@pytest.mark.parametrize("host, safe", HOSTS.items())
def test_only_this_machine_by_default(host, safe):
    assert security.is_loopback(host) == safe
    if not safe:
        flags = types.SimpleNamespace(host=host, allow_other_machines=False)
        with pytest.raises(InputError, match="give --allow_other_machines if that is meant"):
            commands.serve(None, flags)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"serve needs starlette: pip install 'fewshotseg\[web\]'"):
        commands.serve(None, None)


def test_for_other_machines_numbers_are_as_good_as_another():
    guard = security.Guard(None, "0.0.0.0", 80)

    def host(name):
        headers = {"host": name}
        return guard._bad_host(types.SimpleNamespace(headers=headers))

    assert not host("192.168.1.2:80") and host("evil.example:80") and host("192.168.1.2:81")
    # Browsers leave the port of http out.
    assert not host("192.168.1.2") and not host("[::1]") and host("evil.example") and host("")
    guard = security.Guard(None, "127.0.0.1", 8080)
    assert host("127.0.0.1") and not host("127.0.0.1:8080")


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}"):
            server.serve(server.create_app(make_predictor(), "a model"), port=port)
