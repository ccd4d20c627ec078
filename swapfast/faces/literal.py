"""Parses the Python literals in faceswap's PNG headers into plain values, and nothing else.

``ast.literal_eval`` builds a syntax tree first. That is slow for a 20 kB header, and nesting in a damaged or hostile
file can exhaust the interpreter's stack. This parser makes one pass over the tokens with an explicit stack: no
recursion, bounded length and depth.

Accepted: dict (keys str or bytes), list, tuple, str, bytes, int, float, bool, None.
Refused: other names (also nan and inf), sets, calls, operators, raw and f-strings, 0x10, 1_000, 1j, adjacent strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_CHARS = 8_000_000
MAX_DEPTH = 32
MAX_DIGITS = 400  # below Python's own limit of 4300

# A list of numbers (an embedding) or of such lists (landmarks) is one token. They are most of a header.
_LIST = r"\[[-+0-9.eE,\ \t\r\n]++\]"
_ROW = re.compile(r"\[([^\]]*)\]")
_TOKEN = re.compile(
    rf"""[\ \t\r\n]*+(?:
    (?P<text> '[^'\\\r\n]*+' | "[^"\\\r\n]*+" )
  | (?P<quote> [bB]?['"] )
  | (?P<numbers> {_LIST} | \[ {_LIST} (?: ,\ ? {_LIST} )*+ \] )
  | (?P<number> [+-]? (?: \d++\.?\d*+ | \.\d++ ) (?: [eE][+-]?\d++ )? )
  | (?P<name> [A-Za-z_]++ )
  | (?P<mark> [\[\](){{}},:] )
    )""",
    re.VERBOSE | re.ASCII,
)
# The decoder checks the digits of \x, \u and \U: nearly every byte of a mask is such an escape.
_STR_BODY = re.compile(r"""[^\\]*+(?:\\[\\'"abfnrtv0-7xuU][^\\]*+)*+""")
_BYTES_BODY = re.compile(r"""[^\\]*+(?:\\[\\'"abfnrtv0-7x][^\\]*+)*+""")
_NAMES = {"True": True, "False": False, "None": None}
_CLOSER = {"[": "]", "(": ")", "{": "}"}


class _OpenContainer:
    """A container being filled.

    expected: what may come next: "item", "key", "colon", "value" or "end" (a comma or the closing bracket).
    """

    __slots__ = ("closer", "entries", "expected", "has_comma", "items", "key")

    def __init__(self, opener: str) -> None:
        self.closer = _CLOSER[opener]
        self.items: list[Any] = []  # of a list or tuple
        self.entries: dict[str | bytes, Any] = {}
        self.expected = "key" if opener == "{" else "item"
        self.has_comma = False
        self.key: str | bytes = ""

    def add(self, value: Any, offset: int) -> None:
        if self.expected == "item":
            self.items.append(value)
        elif self.expected == "value":
            self.entries[self.key] = value
        elif self.expected == "key":
            # Only text keys: their hash is salted, so no file can be built to make the dictionary slow.
            if not isinstance(value, (str, bytes)):
                raise ValueError(f"a dictionary key that is not text at character {offset}")
            self.key, self.expected = value, "colon"
            return
        else:
            raise ValueError(f"a value where none may stand at character {offset}")
        self.expected = "end"

    def punctuate(self, mark: str, offset: int) -> None:
        if mark == "," and self.expected == "end":
            self.expected, self.has_comma = ("key" if self.closer == "}" else "item"), True
        elif mark == ":" and self.expected == "colon":
            self.expected = "value"
        else:
            raise ValueError(f"unexpected {mark!r} at character {offset}")

    def close(self, mark: str, offset: int) -> Any:
        bare_comma = self.has_comma and not (self.items or self.entries)
        if mark != self.closer or self.expected in ("colon", "value") or bare_comma:
            raise ValueError(f"unexpected {mark!r} at character {offset}")
        if mark == "}":
            return self.entries
        if mark == "]":
            return self.items
        return self.items[0] if len(self.items) == 1 and not self.has_comma else tuple(self.items)


def parse_literal(text: str, max_chars: int = MAX_CHARS, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value that ``text`` represents. Raises ValueError with a short reason; the caller names the file."""
    if len(text) > max_chars:
        raise ValueError(f"longer than {max_chars} characters")
    stack: list[_OpenContainer] = []
    results: list[Any] = []
    offset, match = 0, _TOKEN.match
    while token := match(text, offset):
        kind, start, offset = str(token.lastgroup), offset, token.end()
        content = token[kind]
        if kind == "text":
            value = content[1:-1]
        elif kind == "quote":
            value, offset = _quoted(text, start, offset, content)
        elif kind == "mark":
            if content in "[({":
                if len(stack) >= max_depth:
                    raise ValueError(f"nested deeper than {max_depth}")
                stack.append(_OpenContainer(content))
                continue
            if not stack:
                raise ValueError(f"unexpected {content!r} at character {start}")
            if content in ",:":
                stack[-1].punctuate(content, start)
                continue
            value = stack[-1].close(content, start)
            stack.pop()
        else:
            value = _READERS[kind](content)
        if stack:
            stack[-1].add(value, start)
            # Nearly every value is followed by one of these marks; matching a token for it would cost time.
            mark = text[offset : offset + 1]
            if mark == "," or mark == ":":
                stack[-1].punctuate(mark, offset)
                offset += 1
        elif results:
            raise ValueError(f"more than one value at character {start}")
        else:
            results.append(value)
    if text[offset:].strip(" \t\r\n"):
        raise ValueError(f"not a plain literal at character {offset}")
    if stack:
        raise ValueError("ends in the middle of a value")
    if not results:
        raise ValueError("empty")
    return results[0]


def _number(text: str) -> int | float:
    text = text.strip()
    if text.lstrip("+-").isdigit():
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)
    return float(text)


def _numbers(text: str) -> list:
    """Return a list of numbers, or a list of such lists."""
    try:
        return json.loads(text)  # reads a number as Python does, or refuses it
    except ValueError:  # +1, .5, a trailing comma, or no numbers
        return [_row(row) for row in _ROW.findall(text, 1)] if "[" in text[1:] else _row(text[1:-1])


def _row(text: str) -> list:
    parts = text.split(",")
    if not parts[-1].strip():
        parts.pop()  # an empty list, or a trailing comma
    return [_number(part) for part in parts]


def _name(text: str) -> bool | None:
    if text not in _NAMES:
        raise ValueError(f"the name {text[:20]!r}, which is not a plain value")
    return _NAMES[text]


def _quoted(text: str, start: int, offset: int, opener: str) -> tuple[str | bytes, int]:
    """Return a bytes value or a text with escapes, and its end. offset: its first character, behind the quote."""
    is_bytes = len(opener) == 2
    end = _closing_quote(text, offset, opener[-1])
    body = text[offset:end]
    if end < 0 or "\n" in body or "\r" in body:
        raise ValueError(f"not a plain literal at character {start}")
    if is_bytes and not body.isascii():
        raise ValueError("a bytes value with characters beyond ASCII")
    if "\\" in body:
        body = _unescaped(body, _BYTES_BODY if is_bytes else _STR_BODY)
    return body.encode("latin-1") if is_bytes else body, end + 1


def _closing_quote(text: str, offset: int, quote: str) -> int:
    """Return the first unescaped quote from ``offset``, just behind the opening quote, on; -1 if there is none."""
    end = text.find(quote, offset)
    while end >= 0:
        run = end
        while text[run - 1] == "\\":  # stops at the opening quote
            run -= 1
        if (end - run) % 2 == 0:
            return end
        end = text.find(quote, end + 1)
    return -1


def _unescaped(body: str, allowed: re.Pattern) -> str:
    if not allowed.fullmatch(body):
        raise ValueError("an unknown escape in a text")
    try:
        # Every character is a known escape or stands for itself, so this decoder cannot misread any.
        return body.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise ValueError("an unknown escape in a text") from error


_READERS: dict[str, Callable[[str], Any]] = {"numbers": _numbers, "number": _number, "name": _name}
