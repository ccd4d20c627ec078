"""A reader for the Python literals in faceswap's PNG headers that can only make plain values.

``ast.literal_eval`` builds a syntax tree first: slow for a 20 kB header, and nesting in a damaged or hostile file
can exhaust the interpreter's stack. This one walks tokens with a stack of its own: no recursion, bounded length
and depth, one pass.

Read: dict (keys str or bytes), list, tuple, str, bytes, int, float, bool, None. Refused: every other name (nan and
inf too), sets, calls, operators, raw and f-strings, 0x10, 1_000, 1j, and strings side by side.
"""

from __future__ import annotations

import re

MAX_CHARS = 8_000_000
MAX_DEPTH = 32

# Bare numbers in a list (an embedding), and a list of such lists (landmarks), are one token: most of a header.
_LIST = r"\[[-+0-9.eE,\ \t\r\n]+\]"
_ROW = re.compile(r"\[([^\]]*)\]")
_TOKEN = re.compile(
    rf"""[\ \t\r\n]*(?:
    (?P<rows> \[ {_LIST} (?: ,\ ? {_LIST} )* \] )
  | (?P<numbers> {_LIST} )
  | (?P<string> [bB]? (?: '[^'\\\r\n]*(?:\\.[^'\\\r\n]*)*' | "[^"\\\r\n]*(?:\\.[^"\\\r\n]*)*" ) )
  | (?P<number> [+-]? (?: \d+\.?\d* | \.\d+ ) (?: [eE][+-]?\d+ )? )
  | (?P<name> [A-Za-z_]+ )
  | (?P<mark> [\[\](){{}},:] )
    )""",
    re.VERBOSE | re.ASCII,
)
_NAMES = {"True": True, "False": False, "None": None}
_CLOSER = {"[": "]", "(": ")", "{": "}"}
_BYTES_BODY = re.compile(r"[^\\]*(?:\\(?:[\\'\"abfnrtv0-7]|x[0-9a-fA-F]{2})[^\\]*)*")
_STR_BODY = re.compile(r"[^\\]*(?:\\(?:[\\'\"abfnrtv0-7]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})[^\\]*)*")


class _Open:
    """A container being filled. ``want``: what may come next: item, key, colon, value or end (comma or closer)."""

    __slots__ = ("closer", "comma", "items", "key", "want")

    def __init__(self, opener: str) -> None:
        self.closer = _CLOSER[opener]
        self.items = {} if opener == "{" else []
        self.want = "key" if opener == "{" else "item"
        self.comma = False
        self.key = None

    def place(self, value, at: int) -> None:
        if self.want == "item":
            self.items.append(value)
        elif self.want == "value":
            self.items[self.key] = value
        elif self.want == "key":
            # Only text keys: their hash is salted, so no file can be built to make the dictionary slow.
            if not isinstance(value, (str, bytes)):
                raise ValueError(f"a dictionary key that is not text at character {at}")
            self.key, self.want = value, "colon"
            return
        else:
            raise ValueError(f"a value where none may stand at character {at}")
        self.want = "end"

    def punctuate(self, mark: str, at: int) -> None:
        if mark == "," and self.want == "end":
            self.want, self.comma = ("key" if self.closer == "}" else "item"), True
        elif mark == ":" and self.want == "colon":
            self.want = "value"
        else:
            raise ValueError(f"unexpected {mark!r} at character {at}")

    def close(self, mark: str, at: int):
        bare_comma = self.comma and not self.items
        if mark != self.closer or self.want in ("colon", "value") or bare_comma:
            raise ValueError(f"unexpected {mark!r} at character {at}")
        if mark != ")":
            return self.items
        return self.items[0] if len(self.items) == 1 and not self.comma else tuple(self.items)


def parse_literal(text: str, max_chars: int = MAX_CHARS, max_depth: int = MAX_DEPTH):
    """The value that ``text`` spells. Raises ValueError with a short reason; the caller names the file."""
    if len(text) > max_chars:
        raise ValueError(f"longer than {max_chars} characters")
    stack: list[_Open] = []
    results: list = []
    at, match = 0, _TOKEN.match
    while token := match(text, at):
        kind, content, start = token.lastgroup, token.group(token.lastgroup), at
        at = token.end()
        if kind == "mark":
            if content in "[({":
                if len(stack) >= max_depth:
                    raise ValueError(f"nested deeper than {max_depth}")
                stack.append(_Open(content))
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
            stack[-1].place(value, start)
        elif results:
            raise ValueError(f"more than one value at character {start}")
        else:
            results.append(value)
    if text[at:].strip(" \t\r\n"):
        raise ValueError(f"not a plain literal at character {at}")
    if stack:
        raise ValueError("ends in the middle of a value")
    if not results:
        raise ValueError("empty")
    return results[0]


def _number(text: str) -> int | float:
    text = text.strip()
    if text.lstrip("+-").isdigit():
        return int(text)
    return float(text)


def _rows(text: str) -> list[list]:
    return [_numbers(row) for row in _ROW.findall(text, 1)]


def _numbers(text: str) -> list:
    text = text.strip("[]")
    parts = text.split(",")
    if not parts[-1].strip():
        parts.pop()  # an empty list, or a comma after the last item
        if not parts and "," in text:
            raise ValueError("a comma without a value")
    if text.count(".") == len(parts):
        return list(map(float, parts))  # as many points as numbers: all are floats, or float() refuses one
    return [_number(part) for part in parts]


def _name(text: str) -> bool | None:
    if text not in _NAMES:
        raise ValueError(f"the name {text[:20]!r}, which is not a plain value")
    return _NAMES[text]


def _string(text: str) -> str | bytes:
    is_bytes = text[0] in "bB"
    body = text[2:-1] if is_bytes else text[1:-1]
    allowed = _BYTES_BODY if is_bytes else _STR_BODY
    if is_bytes and not body.isascii():
        raise ValueError("a bytes value with characters beyond ASCII")
    if "\\" in body:
        if not allowed.fullmatch(body):
            raise ValueError("an unknown escape in a text")
        # Every character is a known escape or itself, so this decoder sees nothing it could misread.
        body = body.encode("latin-1", "backslashreplace").decode("unicode_escape")
    return body.encode("latin-1") if is_bytes else body


_READERS = {"rows": _rows, "numbers": _numbers, "number": _number, "name": _name, "string": _string}
