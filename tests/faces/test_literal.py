"""The restricted literal reader against ast.literal_eval, which it replaces."""

from __future__ import annotations

import ast
import random

import pytest

from swapfast.faces.literal import parse_literal


def header_texts(folder) -> list[str]:
    texts = []
    for path in sorted(folder.glob("*.png")):
        data = path.read_bytes()
        start = data.index(b"iTXtfaceswap\0\0\0\0\0") + 17
        length = int.from_bytes(data[start - 21 : start - 17], "big")
        texts.append(data[start : start - 13 + length].decode())
    return texts


@pytest.mark.golden
def test_the_golden_headers_read_as_python_reads_them(golden):
    texts = header_texts(golden.folder / "faces")
    assert len(texts) == 6
    for text in texts:
        assert parse_literal(text) == ast.literal_eval(text)


def random_value(rng: random.Random, depth: int):
    kind = rng.randrange(12 if depth else 8)
    if kind < 2:
        return rng.choice([rng.randrange(-5, 5), rng.randrange(-(10**25), 10**25)])
    if kind < 4:
        return rng.choice([rng.uniform(-1, 1), rng.uniform(-1e300, 1e300), 1e-9, -0.0, 5e-324, 1e22])
    if kind == 4:
        return rng.choice([True, False, None])
    if kind == 5:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(30)))
    if kind < 8:
        return "".join(chr(rng.choice([*range(300), 0x1F600, 0x4E00, 39, 34, 92])) for _ in range(rng.randrange(20)))
    size = rng.randrange(5)
    if kind == 8:
        return tuple(random_value(rng, depth - 1) for _ in range(size))
    if kind == 9:
        return [[rng.uniform(-9, 9), rng.randrange(9)] for _ in range(size)]
    if kind == 10:
        return [random_value(rng, depth - 1) for _ in range(size)]
    return {rng.choice([str(i), bytes([i])]): random_value(rng, depth - 1) for i in range(size)}


def same(one, other) -> bool:
    """Equal in value and in type, all the way down."""
    return repr(one) == repr(other)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_python_writes_is_read_back(seed):
    rng = random.Random(seed)
    for _ in range(50):
        value = random_value(rng, 4)
        assert same(parse_literal(repr(value)), value)


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "()", "{}", "[ ]", "(1)", "(1,)", "[1,]", "{'a':1,}", " [ 1 , 2 ] ", "[[1, 2], [3, 4]]", "[[1],[2]]"),
        *(
            "-5",
            "+5",
            "[+1, -2.5]",
            "1e999",
            ".5",
            "5.",
            "1E-3",
            "'a\\'b'",
            '"a\'b"',
            "b'\\x00\\xff\\n\\\\'",
            "'\\u00e9'",
        ),
        *("'\\101'", "[[[1, 2]], [3.0]]", "[1, [2, 3]]", "[[1, 2], 'x']", "[[1, 2],\n[3]]", "B'x'", "[[1.], [2]]"),
    ],
)
def test_spellings_agree_with_python(text):
    assert same(parse_literal(text), ast.literal_eval(text.strip()))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "[",
            "]",
            "(",
            "{",
            "[1",
            "[1 2]",
            "[,]",
            "[1,,2]",
            "(,)",
            "{,}",
            "{'a'}",
            "{'a':}",
            "{'a' 1}",
            "{1, 2}",
        ),
        *(
            "{'a':1 'b':2}",
            "[1)",
            "(1]",
            "1 2",
            "1, 2",
            "'a' 'b'",
            "nan",
            "inf",
            "-inf",
            "[nan]",
            "True()",
            "__import__",
        ),
        *(
            "__import__('os')",
            "[].append",
            "1+2",
            "1+2j",
            "3j",
            "0x10",
            "1_000",
            "--1",
            "r'x'",
            "f'x'",
            "u'x'",
            "'a",
            'b"a',
        ),
        *(
            "'\n'",
            "b'\\u1234'",
            "'\\q'",
            "'\\x1'",
            "'\\N{DASH}'",
            "b'\xe9'",
            "...",
            "{[]: 1}",
            "{(): 1}",
            "{1: 2}",
            "lambda: 1",
        ),
        *(
            "[1.2.3]",
            "[1-2]",
            "[[1], [2]",
            "[[1] [2]]",
            "'\\U99999999'",
            "[e]",
            "[-]",
            "@",
            "#",
            "{'a': 1}}",
            "[.]",
            "1" * 9999,
        ),
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(ValueError) as caught:
        parse_literal(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "text", ["[" * 10**6, "(" * 10**6, "{'a':" * 10**5, "[[1]," * 10**5, "[1," * 10**5, "-" * 10**5]
)
def test_nesting_without_end_is_refused_at_once(text):
    with pytest.raises(ValueError, match=r"nested deeper than|not a plain literal"):
        parse_literal(text)


def test_length_and_depth_are_bounded():
    assert parse_literal("[" * 32 + "]" * 32)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        parse_literal("('a'," * 33 + ")" * 33)
    with pytest.raises(ValueError, match="longer than 10 characters"):
        parse_literal("'0123456789'", max_chars=10)
    long = "[" + "1.5, " * 200_000 + "]"
    assert len(parse_literal(long)) == 200_000
