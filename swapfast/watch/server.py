"""The page's server: one stream of events for each open page, pictures, curves, and three buttons."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from swapfast.watch.access import Guard, Token
from swapfast.watch.folder import REQUESTS, WatchedFolder
from swapfast.watch.pictures import read_picture

POLL_S = 1.0
MOST_PAGES = 200  # open at a time
_PAGES_PER_S = 20  # so many open pages make each wait a second longer
_KEPT = 60  # messages that a page which was away for a moment can be told again
_ALIVE_S = 15.0  # between two signs of life on a stream that has nothing to say
_HEED_S = 0.2  # between two looks at whether it is to end
_LONGEST_BODY = 4096
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


@dataclass
class _Told:
    """What all pages know of a folder."""

    state: dict = field(default_factory=dict)
    pictures: list[int] = field(default_factory=list)
    lines: int = 0
    generation: int = 0


class Hub:
    """Looks at the folders for all open pages at once, and tells each page what has changed.

    A message is made once, however many pages are open, and only where something has changed.
    """

    def __init__(self, folders: Sequence[WatchedFolder]) -> None:
        self.folders = folders
        self.pages = 0  # that are open
        self.is_closed = False
        self._name = secrets.token_hex(4)  # of this server, so that a page notices another one
        self._number = 0
        self._messages: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._news = asyncio.Condition()
        self._busy = asyncio.Lock()  # the folders are looked at by a thread: a disk may not answer for a while
        self._told = [_Told() for _ in folders]
        self._cached: dict[str, tuple[int, bytes]] = {}

    async def run(self, should_end: Callable[[], bool]) -> None:
        """Look at the folders again and again until ``should_end``; then end all streams."""
        loop = asyncio.get_running_loop()
        try:
            while not should_end():
                async with self._busy:
                    has_more, message = await loop.run_in_executor(None, self._look)
                    if message:
                        await self._publish(message)
                await self._pause(0.0 if has_more else POLL_S + self.pages / _PAGES_PER_S, should_end)
        finally:
            self.is_closed = True
            async with self._news:
                self._news.notify_all()

    @staticmethod
    async def _pause(seconds: float, should_end: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not should_end():
            await asyncio.sleep(max(0.0, min(_HEED_S, end - loop.time())))
            if loop.time() >= end:
                return

    def _look(self) -> tuple[bool, list[dict]]:
        """Look at all folders; return whether there is more to be read at once, and what has changed of which."""
        has_more, message = False, []
        for number, folder in enumerate(self.folders):
            has_more |= folder.poll()
            if changes := self._changes(number, folder):
                message.append({"run": number} | changes)
        return has_more, message

    def _changes(self, number: int, folder: WatchedFolder) -> dict[str, Any]:
        """Return what has changed of a folder since the last call, by the page's names."""
        told, log = self._told[number], folder.follower
        changes: dict[str, Any] = {}
        if (state := folder.state()) != told.state:
            told.state = state
            changes |= {"state": state, "ages": folder.ages()}
        if (pictures := list(folder.pictures)) != told.pictures:
            told.pictures = changes["pictures"] = pictures
        if log.lines != told.lines:
            new = log.lines - told.lines  # less than none: the log is another one
            told.lines = log.lines
            is_anew = not 0 < new < len(log.tail)
            changes |= {"tail": list(log.tail)[0 if is_anew else -new :], "tail_anew": is_anew}
        if log.curves.generation != told.generation:
            told.generation = log.curves.generation
            log.curves.take_changes()
            changes["curves_anew"] = True
        elif points := log.curves.take_changes():
            changes["curves"] = points
        return changes

    async def _publish(self, message: list[dict]) -> None:
        async with self._news:
            self._number += 1
            self._messages.append((self._number, _event("news", message, f"{self._name}-{self._number}")))
            self._news.notify_all()

    def _everything(self) -> bytes:
        """Return the first message of a stream."""
        return self._once(
            "everything",
            lambda: _event(
                "everything",
                [
                    {
                        "name": folder.name,
                        "folder": str(folder.folder),
                        "state": folder.state(),
                        "ages": folder.ages(),
                        "pictures": list(folder.pictures),
                        "tail": list(folder.follower.tail),
                    }
                    for folder in self.folders
                ],
                f"{self._name}-{self._number}",
            ),
        )

    async def curves(self, number: int) -> bytes:
        """Return all curves of a folder, as JSON, with the number of the last message that they contain."""
        async with self._busy:
            curves = self.folders[number].follower.curves
            return self._once(
                f"curves {number}",
                lambda: _json({"message": self._number, "width": curves.width, "points": curves.all_points()}),
            )

    async def ask(self, number: int, request: str) -> str | None:
        """Ask a folder's run for one of REQUESTS; return why that was not possible, None where it was."""
        folder = self.folders[number]
        async with self._busy:
            problem = await asyncio.get_running_loop().run_in_executor(None, folder.ask, request)
            if problem is None:
                folder.follower.note(f"asked for from the page: {request}")
            return problem

    def _once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` returns, made once between two messages."""
        number, content = self._cached.get(name, (-1, b""))
        if number != self._number:
            content = make()
            self._cached[name] = self._number, content
        return content

    async def stream(self, last_id: str) -> AsyncIterator[bytes]:
        """Return what one page is told, from where it was (the id of a message, or '') or from the start."""
        self.pages += 1
        try:
            number = self._number_of(last_id)
            if number is None:
                async with self._busy:
                    number, first = self._number, self._everything()
                yield first
            while not self.is_closed:
                news = [data for at, data in self._messages if at > number]
                if self._messages and self._messages[0][0] > number + 1:  # a page that takes too little
                    async with self._busy:
                        number, first = self._number, self._everything()
                    yield first
                    continue
                number = self._number
                if news:
                    yield b"".join(news)
                else:
                    yield await self._wait(number)
        finally:
            self.pages -= 1

    async def _wait(self, number: int) -> bytes:
        """Wait for a message after ``number``; return a comment, which keeps the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ALIVE_S), self._news:
                await self._news.wait_for(lambda: self._number > number or self.is_closed)
                return b""
        return b": alive\n\n"

    def _number_of(self, last_id: str) -> int | None:
        name, _, text = last_id.partition("-")
        if name != self._name or not text.isdecimal() or len(text) > 12:
            return None
        number = int(text)
        oldest = self._messages[0][0] if self._messages else self._number + 1
        return number if oldest - 1 <= number <= self._number else None


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _event(kind: str, value: object, id: str) -> bytes:
    return b"event: %s\nid: %s\ndata: %s\n\n" % (kind.encode(), id.encode(), _json(value))


def make_app(hub: Hub, token: Token, hosts: frozenset[str]) -> Starlette:
    """Return the server's application. hosts: the names by which it may be called."""
    texts = {path: (resources.files(__package__) / "page" / name).read_bytes() for path, (name, _) in _FILES.items()}

    async def file(request: Request) -> Response:
        path = request.url.path
        content = texts[path]
        if path == "/":
            content = content.replace(b"RIGHTS", request.scope["rights"].encode())
        return Response(content, media_type=_FILES[path][1])

    async def events(request: Request) -> Response:
        if hub.pages >= MOST_PAGES:
            return PlainTextResponse(f"{MOST_PAGES} pages are open already\n", 503)
        stream = hub.stream(request.headers.get("last-event-id", ""))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    def folder_of(request: Request) -> int | None:
        text = request.query_params.get("run", "")
        return int(text) if text.isdecimal() and len(text) < 6 and int(text) < len(hub.folders) else None

    async def curves(request: Request) -> Response:
        number = folder_of(request)
        if number is None:
            return PlainTextResponse("no such run\n", 404)
        return Response(await hub.curves(number), media_type="application/json")

    async def picture(request: Request) -> Response:
        number = folder_of(request)
        if number is None:
            return PlainTextResponse("no such run\n", 404)
        step, masked = request.query_params.get("step", ""), request.query_params.get("mask", "1") != "0"
        path = None
        if not step or (step.isdecimal() and len(step) < 13):
            path = hub.folders[number].picture(int(step) if step else None, masked)
        loop = asyncio.get_running_loop()
        page_picture = None if path is None else await loop.run_in_executor(None, read_picture, path)
        if page_picture is None:
            return PlainTextResponse("no such picture\n", 404)
        tag = f'"{page_picture.tag}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(page_picture.data, media_type=page_picture.kind, headers=headers)

    async def do(request: Request) -> Response:
        try:
            asked_action = json.loads(await _body(request))
            number, what = asked_action["run"], asked_action["do"]
            if type(number) is not int or not 0 <= number < len(hub.folders) or what not in REQUESTS:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError, ClientDisconnect):
            return PlainTextResponse(f"run: a number; do: one of {', '.join(REQUESTS)}\n", 400)
        problem = await hub.ask(number, what)
        return JSONResponse({"problem": problem}, 200 if problem is None else 409)

    routes = [
        *(Route(path, file) for path in _FILES),
        Route("/events", events),
        Route("/curves", curves),
        Route("/picture", picture),
        Route("/do", do, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, hosts=hosts)])


async def _body(request: Request) -> bytes:
    """Return a request's body. Raises ValueError where it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_BODY:
            raise ValueError
    return body
