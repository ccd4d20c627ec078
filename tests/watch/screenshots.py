"""Draw the pictures of docs/watch.md anew: python tests/watch/screenshots.py MODEL OTHER_MODEL [FOLDER]

Each is a model folder that was trained with --validation. FOLDER is docs/images by default.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Browser, sync_playwright
from watched import Page

IMAGES = Path(__file__).resolve().parents[2] / "docs/images"
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
_QUALITY = 82  # of the JPEG
_DRAWN_MS = 1500  # until curves and pictures are there


def shoot(browser: Browser, page: Page, out: Path, width: int, height: int, **options) -> None:
    """Write what a window of ``width`` x ``height`` px shows of a page. options: of the browser's context."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    tab = context.new_page()
    tab.goto(f"{page.url}?token={page.token.whole}")
    tab.wait_for_selector("figure")
    tab.wait_for_timeout(_DRAWN_MS)
    pixels = np.frombuffer(tab.screenshot(), np.uint8)
    cv2.imwrite(str(out), cv2.imdecode(pixels, cv2.IMREAD_COLOR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    context.close()


def main() -> None:
    """Write the four pictures."""
    first, second, *rest = map(Path, sys.argv[1:])
    out = rest[0] if rest else IMAGES
    one, both = Page([first]), Page([first, second])
    try:
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            shoot(browser, one, out / "watch.jpg", 1000, 1000)
            shoot(browser, both, out / "watch_runs.jpg", 1000, 1000)
            shoot(browser, one, out / "watch_dark.jpg", 800, 1000, color_scheme="dark")
            shoot(browser, one, out / "watch_phone.jpg", 390, 1400, is_mobile=True, has_touch=True)
            browser.close()
    finally:
        for page in (one, both):
            page.close()


if __name__ == "__main__":
    main()
