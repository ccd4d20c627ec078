"""Who may see the page, and who may ask runs for something.

A token has two halves, READ.WRITE. The first is enough to look; the whole one also works the buttons. It comes with the
address that a person opens and is kept in a cookie from then on, which other sites cannot make a browser send.
"""

from __future__ import annotations

import hashlib
import http.cookies
import ipaddress
import re
import secrets
import socket
import urllib.parse
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Token:
    """What an address carries to be let in. read, write: its halves."""

    read: str
    write: str

    @classmethod
    def new(cls) -> Token:
        """Return a token that nobody can guess."""
        return cls(secrets.token_urlsafe(18), secrets.token_urlsafe(18))

    @property
    def whole(self) -> str:
        """The token that may look and ask."""
        return f"{self.read}.{self.write}"

    @property
    def cookie(self) -> str:
        """The cookie's name, another one for each server: browsers give all ports of a host the same cookies."""
        return f"swapfast-{hashlib.sha256(self.read.encode()).hexdigest()[:12]}"

    def rights(self, token: str) -> str:
        """Return 'write', 'read' or '' for what somebody gives as a token."""
        data = token.encode("utf-8", "replace")
        if secrets.compare_digest(data, self.whole.encode()):
            return "write"
        return "read" if secrets.compare_digest(data, self.read.encode()) else ""


def allowed_hosts(host: str) -> frozenset[str]:
    """Return the names by which browsers may call a server that listens at ``host``.

    One that listens everywhere is also called by any address in numbers, which no foreign site can have.
    """
    names = {*_LOCAL, host.lower()}
    if host in ("0.0.0.0", "::", ""):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), "*numbers"}
    return frozenset(names)


class Guard:
    """Lets in who calls this server by its name and has the token; POST is for the page itself with the whole token.

    What it lets in finds 'read' or 'write' as ``scope["rights"]``. The answers: 400 a foreign Host, 403 no token or a
    POST that comes from elsewhere, 405 another method.
    """

    def __init__(self, app: ASGIApp, token: Token, hosts: frozenset[str]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a web socket, which nothing here speaks
        refusal = self._refusal(scope, Headers(scope=scope))

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if scope.get("sets_cookie"):
                    headers.append("Set-Cookie", scope["sets_cookie"])
            await send(message)

        await (self.app if refusal is None else refusal)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return _refused(400, "this page is not called so; open the address that swapfast printed")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refused(405, "only GET and POST")
        rights = self._rights(scope, headers)
        if not rights:
            return _refused(403, "the address that swapfast printed carries a token; open that")
        scope["rights"] = rights
        if scope["method"] != "POST":
            return None
        origin = urllib.parse.urlsplit(headers.get("origin", ""))
        if origin.scheme not in ("http", "https") or origin.netloc != host:
            return _refused(403, "this request does not come from the page")
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return _refused(403, "this request does not come from the page")
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _refused(403, "send JSON")
        if rights != "write":
            return _refused(403, "this address may only look")
        return None

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name in self.hosts:
            return True
        try:
            return "*numbers" in self.hosts and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _rights(self, scope: Scope, headers: Headers) -> str:
        """Return what the request may do; note the cookie to be set where the page is opened with a token."""
        if scope["path"] == "/" and scope["method"] == "GET":
            query = urllib.parse.parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8)
            token = query.get("token", [""])[0]
            rights = self.token.rights(token)
            if rights:
                scope["sets_cookie"] = f"{self.token.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
            if rights or token:  # a wrong one is not passed over for the cookie of a right one
                return rights
        return self.token.rights(_cookie(headers.get("cookie", ""), self.token.cookie))


def _cookie(text: str, name: str) -> str:
    try:
        cookie = http.cookies.SimpleCookie(text).get(name)
    except http.cookies.CookieError:
        return ""
    return cookie.value if cookie is not None else ""


def _refused(code: int, text: str) -> PlainTextResponse:
    return PlainTextResponse(f"{text}\n", code)
