"""Packages that are there and cannot be imported."""

from __future__ import annotations

import sys

import pytest

from swapfast.requirements import import_problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise TypeError('Descriptors cannot\\n be created directly.')", "Descriptors cannot be created directly"),
        ("raise AttributeError('_ARRAY_API not found')", "_ARRAY_API not found"),
        ("raise ImportError", "ImportError"),
    ],
)
def test_whatever_a_broken_package_raises_is_said(tmp_path, monkeypatch, line, said):
    (tmp_path / "broken_package.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    import_problem.cache_clear()
    try:
        assert import_problem("broken_package") == said
    finally:
        import_problem.cache_clear()
        sys.modules.pop("broken_package", None)
