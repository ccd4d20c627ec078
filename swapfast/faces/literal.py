"""A reader for the Python literals in faceswap's PNG headers that can only make plain values.

``ast.literal_eval`` builds a syntax tree first: slow for a 20 kB header, and nesting in a damaged or hostile file
can exhaust the interpreter's stack. This one walks tokens with a stack of its own: no recursion, bounded length
and depth, one pass.

Read: dict (keys str or bytes), list, tuple, str, bytes, int, float, bool, None. Refused: every other name (nan and
inf too), sets, calls, operators, raw and f-strings, 0x10, 1_000, 1j, and strings side by side.
"""

from __future__ import annotations

import json
import re

MAX_CHARS = 8_000_000
MAX_DEPTH = 32
MAX_DIGITS = 400  # Python refuses above 4300, in words of its own

# Bare numbers in a list (an embedding), and a list of such lists (landmarks), are one token: most of a header.
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
# The digits of \x, \u and \U are left to the decoder: nearly every byte of a mask is such an escape.
_STR_BODY = re.compile(r"""[^\\]*+(?:\\[\\'"abfnrtv0-7xuU][^\\]*+)*+""")
_BYTES_BODY = re.compile(r"""[^\\]*+(?:\\[\\'"abfnrtv0-7x][^\\]*+)*+""")
_NAMES = {"True": True, "False": False, "None": None}
_CLOSER = {"[": "]", "(": ")", "{": "}"}


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
        kind, start, at = token.lastgroup, at, token.end()
        content = token[kind]
        if kind == "text":
            value = content[1:-1]
        elif kind == "quote":
            value, at = _quoted(text, start, at, content)
        elif kind == "mark":
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
            # What follows nearly every value is not worth a token of its own.
            mark = text[at : at + 1]
            if mark == "," or mark == ":":
                stack[-1].punctuate(mark, at)
                at += 1
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
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)
    return float(text)


def _numbers(text: str) -> list:
    """A list of numbers, or of such lists."""
    try:
        return json.loads(text)  # reads a number as Python does, or not at all
    except ValueError:  # +1, .5, a comma after the last item, or no numbers
        return [_row(row) for row in _ROW.findall(text, 1)] if "[" in text[1:] else _row(text[1:-1])


def _row(text: str) -> list:
    parts = text.split(",")
    if not parts[-1].strip():
        parts.pop()  # an empty list, or a comma after the last item
    return [_number(part) for part in parts]


def _name(text: str) -> bool | None:
    if text not in _NAMES:
        raise ValueError(f"the name {text[:20]!r}, which is not a plain value")
    return _NAMES[text]


def _quoted(text: str, start: int, at: int, opener: str) -> tuple[str | bytes, int]:
    """(value, where it ends) of a bytes value or of a text with escapes, whose first character is ``at``."""
    is_bytes = len(opener) == 2
    end = _closing_quote(text, at, opener[-1])
    body = text[at:end]
    if end < 0 or "\n" in body or "\r" in body:
        raise ValueError(f"not a plain literal at character {start}")
    if is_bytes and not body.isascii():
        raise ValueError("a bytes value with characters beyond ASCII")
    if "\\" in body:
        body = _unescaped(body, _BYTES_BODY if is_bytes else _STR_BODY)
    return body.encode("latin-1") if is_bytes else body, end + 1


def _closing_quote(text: str, at: int, quote: str) -> int:
    """The first quote from ``at`` that no backslash escapes; -1 if there is none. ``at`` is just inside the text."""
    end = text.find(quote, at)
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
        # Every character is a known escape or itself, so this decoder sees nothing it could misread.
        return body.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise ValueError("an unknown escape in a text") from error


_READERS = {"numbers": _numbers, "number": _number, "name": _name}
