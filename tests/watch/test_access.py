"""Who is let in: tokens and their halves, Host, Origin, methods, hostile requests."""

from __future__ import annotations

import socket

import pytest
from watched import make_model

from swapfast.watch.access import Token


def test_without_a_token_nothing_is_shown(open_page, model):
    page = open_page(model)
    for path in ("/", "/page.js", "/page.css", "/events", "/curves?run=0", "/picture?run=0", "/missing"):
        for cookie in (None, "swapfast=x", f"{page.token.cookie}=wrong", f"{page.token.cookie}=é", "=;=\x01;;"):
            headers = {"Cookie": cookie and cookie.encode().decode("latin-1")}
            status, _, body = page.ask("GET", path, headers)
            assert status == 403 and b"token" in body, (path, cookie)
    status, _, _ = page.ask("GET", "/?token=wrong")  # though the cookie is right
    assert status == 403
    assert page.ask("GET", f"/page.css?token={page.token.whole}", {"Cookie": None})[0] == 403, "only where it is opened"


@pytest.mark.parametrize("half", ["whole", "read"])
def test_a_token_becomes_a_cookie_that_other_sites_cannot_use(open_page, model, half):
    page = open_page(model)
    token = getattr(page.token, half)
    status, headers, body = page.ask("GET", f"/?token={token}", {"Cookie": None})
    assert status == 200 and f'data-rights="{"write" if half == "whole" else "read"}"'.encode() in body
    assert headers["Set-Cookie"] == f"{page.token.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
    assert page.ask("GET", "/", {"Cookie": f"other=1; {page.token.cookie}={token}"})[0] == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_half_that_may_look_may_not_ask(open_page, model):
    page = open_page(model)
    read = f"{page.token.cookie}={page.token.read}"
    assert page.ask("GET", "/curves?run=0", {"Cookie": read})[0] == 200
    status, _, body = page.post({"run": 0, "do": "save"}, Cookie=read)
    assert status == 403 and b"only look" in body
    assert page.post({"run": 0, "do": "save"})[0] == 409, "let in; nobody trains there"


def test_a_foreign_host_is_refused(open_page, model):
    page = open_page(model)
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.5",
        "",
        "localhost@evil",
        "[::1",
        "a b",
        "x" * 5000,
    ):
        assert page.ask("GET", "/", {"Host": host})[0] == 400, host
    for host in ("localhost", "LOCALHOST:9999", "127.0.0.1:1", "[::1]:8420"):  # ssh -L has a port of its own
        assert page.ask("GET", "/", {"Host": host})[0] == 200, host


def test_one_that_listens_everywhere_is_called_by_numbers_and_by_its_name(open_page, model):
    page = open_page(model, host="0.0.0.0")
    for host in ("192.168.1.5:80", "[fe80::1]", socket.gethostname()):
        assert page.ask("GET", "/", {"Host": host})[0] == 200, host
    assert page.ask("GET", "/", {"Host": "evil.example"})[0] == 400


def test_a_request_that_acts_comes_from_the_page_alone(open_page, model):
    page = open_page(model)
    wanted = {"run": 0, "do": "save"}
    assert page.post(wanted)[0] == 409
    refused = [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": f"http://127.0.0.1:{page.port + 1}"},  # another page of this machine
        {"Origin": f"http://localhost:{page.port}"},  # not what the Host says
        {"Origin": f"file://127.0.0.1:{page.port}"},
        {"Content_Type": "text/plain"},  # what a form can send
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": None},
        {"Sec_Fetch_Site": "cross-site"},
        {"Cookie": None},
    ]
    for headers in refused:
        assert page.post(wanted, **headers)[0] == 403, headers
    for method in ("GET", "HEAD"):
        assert page.ask(method, "/do")[0] == 405
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert page.ask(method, "/")[0] == 405


def test_a_wrong_request_is_answered_with_400(open_page, model):
    page = open_page(model)
    bodies = [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        "[" * 4000,
        '{"run": 1, "do": "save"}',
        '{"run": -1, "do": "save"}',
        '{"run": true, "do": "save"}',
        '{"run": "0", "do": "save"}',
        '{"run": 0, "do": "remove"}',
        '{"run": 0, "do": ["save"]}',
        '{"run": 0, "do": "save", "x": "' + "y" * 5000 + '"}',
        "\udc80",
    ]
    for body in bodies:
        assert page.post(body.encode("utf-8", "surrogateescape").decode("latin-1"))[0] == 400, body


def test_numbers_that_name_nothing_are_answered_with_404(open_page, model):
    page = open_page(model)
    for path in ("/curves", "/picture"):
        for run in ("", "?run=1", "?run=-1", "?run=x", "?run=%C2%B2", "?run=" + "9" * 400):
            assert page.ask("GET", path + run)[0] == 404
    for step in ("101", "x", "-1", "9" * 400, "../../x"):
        assert page.ask("GET", f"/picture?run=0&step={step}")[0] == 404


def test_no_two_tokens_are_alike():
    tokens = [Token.new() for _ in range(50)]
    halves = {half for token in tokens for half in (token.read, token.write)}
    assert len(halves) == 100 and all(len(half) >= 24 for half in halves) and len({t.cookie for t in tokens}) == 50
    token = tokens[0]
    assert (token.rights(token.whole), token.rights(token.read)) == ("write", "read")
    for wrong in ("", ".", token.write, f".{token.write}", f"{token.read}.", f"{token.write}.{token.read}", "é\udc80"):
        assert token.rights(wrong) == ""


def test_two_pages_of_one_machine_do_not_take_each_others_cookies(open_page, tmp_path):
    first, second = open_page(make_model(tmp_path / "a")), open_page(make_model(tmp_path / "b"))
    both = f"{first.token.cookie}={first.token.whole}; {second.token.cookie}={second.token.read}"
    assert b'"write"' in first.ask("GET", "/", {"Cookie": both})[2]
    assert b'"read"' in second.ask("GET", "/", {"Cookie": both})[2]
