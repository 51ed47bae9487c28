"""The review page's server: what it answers, and the attacks of the live page on everything it has."""

import concurrent.futures
import contextlib
import csv
import io
import json
import socket
import time

import httpx
import numpy as np
import pytest
import reviewing
from PIL import Image
from serving import running

from fewshotseg.runs import ratings as store
from fewshotseg.web import review, server

WHO = {"rater": "ann", "tab": "t"}


@contextlib.contextmanager
def served(folder, **options):
    session = reviewing.make_session(folder, **options)
    with running(app=review.create_app(session, "a run")) as (guard, address):
        with httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
            client.get("/", params={"token": guard.token})
            yield session, client, (guard, address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("review")) as found:
        yield found


def _items(client, number="", rater="ann"):
    response = client.get("/sheet", params={"number": number, "rater": rater})
    assert response.status_code == 200
    return [item["id"] for item in response.json()["items"]]


def _mask():
    mask = np.zeros((reviewing.SIZE, reviewing.SIZE), np.uint8)
    mask[3:9, 4:12] = 1
    return mask


def test_pictures_masks_and_answers(tmp_path):
    with served(tmp_path, real_share=0.0) as (session, client, _):
        about = client.get("/about.json").json()
        assert about["width"] == reviewing.SIZE and about["name"] == "a run"
        first, second, *_ = items = _items(client)
        with Image.open(io.BytesIO(client.get(f"/image/{first}").content)) as picture:
            np.testing.assert_array_equal(picture, session.pair(first).image)
        mask = np.frombuffer(client.get(f"/mask/{first}").content, np.uint8)
        np.testing.assert_array_equal(mask, session.pair(first).mask.ravel())
        nearest = client.get(f"/nearest/{first}")
        assert -1 <= float(nearest.headers["x-correlation"]) <= 1
        sent = {"item": first, "answer": "reject", "tags": ["border"], "ms": 1500, **WHO}
        assert client.post("/rate", json=sent).status_code == 200
        where = "?rater=ann&tab=t&ms=10"
        response = client.post(f"/correct/{second}{where}", content=_mask().tobytes())
        assert response.status_code == 200
        drawn = next(i for i in items if session.pair(i).number % 7 != 6)
        response = client.post(f"/redraw/{drawn}", content=_mask().tobytes())
        assert response.json() == {"sheet": 0} and len(_items(client)) == 13
        table = list(csv.DictReader(io.StringIO(client.get("/ratings.csv").text)))
        assert [row["answer"] for row in table] == ["reject", "corrected"]
        assert client.post("/undo", json=WHO).json()["item"] == second
        assert client.post("/undo", json=WHO).json()["item"] == first
        assert client.post("/undo", json=WHO).json() == {}
        assert not store.active(store.read(session.path))


BAD = [
    ("/rate", b""), ("/rate", b"[1]"), ("/rate", b"{"), ("/rate", b"[" * 4000),
    ("/rate", b'{"item": 3}'), ("/rate", b'{"item": "x", "answer": "accept", "ms": "soon"}'),
    ("/rate", b'{"item": "x", "answer": "accept", "rater": "a", "tab": ""}'),
    ("/rate", b'{"tags": [1]}'), ("/rate", b'{"tags": "border"}'), ("/undo", b"{}"),
    ("/undo", json.dumps({"rater": "x" * 41, "tab": "t"}).encode()),
    ("/undo", json.dumps({"rater": "a\nb", "tab": "t"}).encode()),
    ("/correct/x?rater=a&tab=t", b"short"), ("/redraw/x", b""),
]  # fmt: skip


@pytest.mark.parametrize("path, body", BAD)
def test_what_makes_no_sense_is_said_in_a_sentence(path, body, site):
    _, client, _ = site
    response = client.post(path, content=body)
    assert response.status_code == 422 and "Traceback" not in response.text
    assert response.json()["error"].endswith((".", "anew"))


def test_what_is_not_there_is_not_found(site):
    _, client, _ = site
    for path in ("/image/x", "/mask/../../setup.cfg", "/nearest/%2e%2e", "/image/" + "a" * 3000):
        assert client.get(path).status_code == 404
    full = bytes(reviewing.SIZE**2)
    assert client.post("/correct/x?rater=a&tab=t&ms=1", content=full).status_code == 404
    sent = {"item": "x", "answer": "accept", "ms": 1, **WHO}
    assert client.post("/rate", json=sent).status_code == 404
    for number in ("-1", "1e9", "9999999", "99", "x"):
        response = client.get("/sheet", params={"number": number, "rater": "ann"})
        assert response.status_code == 422


PATHS = (
    "/../server.py", "/..%2fserver.py", "/%2e%2e/%2e%2e/setup.cfg", "//etc/passwd",
    "/image/..%2f..%2fratings.jsonl", "/review/ratings.jsonl",
)  # fmt: skip


def _talk(site, data):
    _, client, (_, address) = site
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def _head(site, request, *more):
    _, client, (_, address) = site
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    lines = [f"{request} HTTP/1.1", f"Host: {address[7:]}", f"Origin: {address}"]
    lines += [f"Cookie: {cookie}", "Connection: close", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(path, site):
    answer = _talk(site, _head(site, f"GET {path}"))
    assert answer.startswith(b"HTTP/1.1 404") and b"import" not in answer and b"root:" not in answer


GETS = ("/", "/review.js", "/about.json", "/sheet?rater=a", "/image/x", "/mask/x", "/ratings.csv")
POSTS = ("/rate", "/undo", "/correct/x", "/redraw/x")


def test_only_who_has_the_token_and_only_by_the_servers_name(site):
    _, client, (guard, address) = site
    with httpx.Client(base_url=address) as stranger:
        for path in (*GETS, "/?token=wrong"):
            assert stranger.get(path).status_code == 403
        for path in POSTS:
            assert stranger.post(path, headers={"Origin": address}).status_code == 403
    for path in GETS:
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403
    for origin in ("http://evil.example", "null", "", "http://127.0.0.1:1"):
        for path in POSTS:
            response = client.post(path, content=b"{}", headers={"Origin": origin})
            assert response.status_code == 403 and "itself" in response.json()["error"]
    with httpx.Client(base_url=address) as stranger:  # there is no WebSocket to cross
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        more = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://evil.example"}
        assert stranger.get("/frames", headers=upgrade | more).status_code == 403


def test_a_body_that_is_too_long_is_not_read(site):
    _, client, _ = site
    for path in POSTS:
        announced = _head(site, f"POST {path}?rater=a&tab=t", f"Content-Length: {1 << 40}")
        assert _talk(site, announced).startswith(b"HTTP/1.1 422")
        response = client.post(
            path, params={"rater": "a", "tab": "t"}, content=(bytes(1 << 12) for _ in range(64))
        )
        assert response.status_code == 422
    assert client.get("/about.json").status_code == 200


def test_who_sends_slowly_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(server, "BODY_SECONDS", 0.5)
    with served(tmp_path) as site:
        started = time.monotonic()
        assert _talk(site, b"GET / HTTP/1.1\r\nX-a: b\r\n") == b""
        head = _head(site, "POST /rate", "Content-Length: 1000")
        assert _talk(site, head + b'{"it').startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 15
        assert site[1].get("/about.json").status_code == 200


def test_fifty_raters_at_once_lose_no_answer(tmp_path):
    with served(tmp_path, real_share=0.0) as (session, client, _):
        items = _items(client)

        def rate(number):
            sent = {"item": items[number % 12], "answer": "accept", "ms": 9, "tab": "t"}
            return client.post("/rate", json={**sent, "rater": f"rater {number // 12}"})

        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(rate, range(120)))
        assert {r.status_code for r in answers} == {200}
        rows = store.active(store.read(session.path))
        assert len(rows) == 120 and len(session.path.read_bytes().splitlines()) == 120


def test_a_fault_is_not_shown(tmp_path, monkeypatch, capsys):
    with served(tmp_path) as (session, client, _):
        items = _items(client)

        def fails(*args):
            raise RuntimeError("secret")

        monkeypatch.setattr(session, "rate", fails)
        sent = {"item": items[0], "answer": "accept", "ms": 9, **WHO}
        response = client.post("/rate", json=sent)
        assert response.status_code == 500 and "secret" not in response.text


def test_every_answer_binds_the_page_to_its_origin(site):
    _, client, _ = site
    for path in ("/", "/about.json", "/image/x", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy
