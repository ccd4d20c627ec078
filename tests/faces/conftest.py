"""Fixtures for faces."""

from __future__ import annotations

import pytest

from swapfast.faces.folder import scan_folder
from swapfast.faces.image import read_image


@pytest.fixture(scope="session")
def golden_heads(golden):
    """[(record, BGR picture)] of the golden faces, in faceswap's order: sorted by name."""
    records = scan_folder(golden.folder / "faces").records
    return [(record, read_image(record.path)) for record in records]
