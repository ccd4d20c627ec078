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


@pytest.mark.parametrize("seed", range(5))
def test_any_spelling_of_a_text_is_read_as_python_reads_it(seed):
    """Every escape, needed or not, next to every other: what Python itself would never write."""
    rng, bare = random.Random(seed), "aux é\u0100"
    escapes = [rf"\{c}" for c in "\\'\"abfnrtv0"] + [r"\7", r"\12", r"\101", r"\x00", r"\xfF", r"\x5c", r"\x27"]
    for _ in range(300):
        quote, is_bytes = rng.choice("'\""), rng.random() < 0.5
        other = '"' if quote == "'" else "'"
        known = [*escapes, other, *(bare[:-2] if is_bytes else [*bare, r"\u00e9", r"\U0001f600"])]
        body = "".join(rng.choice(known) for _ in range(rng.randrange(12)))
        text = ("b" if is_bytes else "") + quote + body + quote
        assert same(parse_literal(text), ast.literal_eval(text)), text
        assert same(parse_literal(f"[{text}, {{{text}: {text}}}]"), ast.literal_eval(f"[{text}, {{{text}: {text}}}]"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_any_spelling_of_numbers_is_read_as_python_reads_it(seed):
    rng = random.Random(seed)
    spellings = ["0", "-0", "+7", "-0.0", ".5", "5.", "1e5", "-2E-3", "+.5e+2", "1e999", "123456789012345678901"]
    for _ in range(300):
        rows = []
        for _ in range(rng.randrange(1, 4)):
            numbers = [rng.choice([*spellings, repr(rng.gauss(0, 9))]) for _ in range(rng.randrange(1, 5))]
            rows.append("[" + rng.choice([", ", ",", " , "]).join(numbers) + rng.choice(["", ",", " "]) + "]")
        text = rng.choice([rows[0], "[" + ", ".join(rows) + "]", "[" + ",".join(rows) + ", ]"])
        assert same(parse_literal(text), ast.literal_eval(text)), text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r"'a\q'", "unknown escape"),
        (r"'\\\q'", "unknown escape"),
        (r"b'\u0041'", "unknown escape"),
        (r"b'\x4'", "unknown escape"),
        (r"'\x4'", "unknown escape"),
        ("'\\x4\u0100'", "unknown escape"),
        (r"'\U00110000'", "unknown escape"),
        (r"'\N{DASH}'", "unknown escape"),
        ("b'\\x41é'", "beyond ASCII"),
        (r"['a\']", "not a plain literal at character 1"),
        (r"[b'a\\\']", "not a plain literal at character 1"),
        ("['a', b'\\x41\n']", "not a plain literal at character 5"),
        ("[1, -]", "could not convert"),
        ("[,]", "could not convert"),
    ],
)
def test_a_misspelt_value_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_literal(text)
    assert type(caught.value) is ValueError, "a codec's error would be taken for text that is not UTF-8"


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


@pytest.mark.slow
def test_length_and_depth_are_bounded():
    assert parse_literal("[" * 32 + "]" * 32)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        parse_literal("('a'," * 33 + ")" * 33)
    with pytest.raises(ValueError, match="longer than 10 characters"):
        parse_literal("'0123456789'", max_chars=10)
    long = "[" + "1.5, " * 200_000 + "]"
    assert len(parse_literal(long)) == 200_000
