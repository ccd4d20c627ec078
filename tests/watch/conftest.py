"""A model folder as a run leaves it, and servers that end with the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from watched import Page, make_model


@pytest.fixture
def model(tmp_path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def open_page():
    """Start servers that end with the test."""
    pages: list[Page] = []

    def start(*folders: Path, **options) -> Page:
        pages.append(Page(list(folders), **options))
        return pages[-1]

    yield start
    for page in pages:
        page.close()
