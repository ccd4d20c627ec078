"""The page in headless Chromium: what a person sees, and what keys and buttons do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from watched import GREEN, RED, TINT, make_model, report, row, sheet, training, wait_until, write_picture

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium-headless-shell"),
]


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def view(chromium):
    """``view(page, ...)`` opens a server's page in a browser; what the browser complains about fails the test."""
    complaints, contexts = [], []

    def open_in_browser(page, half: str = "whole", path: str = "", width: int = 1200, height: int = 900, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.goto(f"{page.url}?token={getattr(page.token, half)}")
        return tab

    open_in_browser.complaints = complaints
    yield open_in_browser
    for context in contexts:
        context.close()
    assert complaints == []


def _pixel(tab, x: float, y: float, run: int = 0) -> tuple[int, int, int]:
    """The colour (B, G, R) at a place of a run's picture, in shares of its size."""
    red, green, blue = tab.evaluate(
        """([x, y, run]) => {
            const canvas = document.querySelectorAll("article canvas")[run];
            const at = canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1);
            return [...at.data.slice(0, 3)];
        }""",
        [x, y, run],
    )
    return blue, green, red


def _is_near(color, other) -> bool:
    return max(abs(a - b) for a, b in zip(color, other)) < 12  # JPEG at quality 95, at the edge of nothing


def _shows(tab, color, x: float = 0.25, y: float = 0.5, run: int = 0) -> None:
    wait_until(lambda: _is_near(_pixel(tab, x, y, run), color), f"{color} is there, not {_pixel(tab, x, y, run)}")


def _reads(tab, selector: str, text: str) -> None:
    wait_until(lambda: text in tab.inner_text(selector), f"{selector} says {text}")


@pytest.mark.long
def test_it_loads_and_goes_on_without_a_reload(open_page, model, view):
    page = open_page(model)
    tab = view(page)
    assert tab.url == page.url, "the token is gone from the address"
    _reads(tab, "article", "iteration 300 of 1,000")
    text = tab.inner_text("article")
    for part in (
        "loss A\n0.25, held out 0.5",
        "21.5 dB",
        "faces/s\n160",
        "2.5 %",
        "2 GiB, at most 3 GiB",
        "8 a side, bf16",
    ):
        assert part in text, (part, text)
    wait_until(lambda: tab.locator("figure").count() >= 7, "charts are drawn")
    titles = tab.locator("figcaption span:first-child").all_inner_texts()
    assert titles[0] == "loss" and "ssim" in titles and "faces/s" in titles and "memory, MiB" in titles
    assert "held out 0.5" in tab.inner_text("figure >> nth=0")
    _shows(tab, TINT, 0.08, 0.15)  # the preview, with the mask
    assert "no run" in text and tab.locator("button[data-do=save]").is_disabled()
    with open(model / "logs/steps.jsonl", "a") as file:
        file.write(report(600))
    _reads(tab, "article", "iteration 600 of 1,000")
    _reads(tab, "pre", "[#00600]")
    _reads(tab, "figure >> nth=0", "A 0.20")  # smoothed
    write_picture(model / "preview.png", sheet((200, 200, 0)))
    _shows(tab, (200, 200, 0), 2.5 / 6)


def test_it_says_when_it_is_done(open_page, model, view):
    tab = view(open_page(model))
    gains = "A gains 0.31 dB in 1,000 iterations, 0.62 before; B loses 0.05 dB in 1,000 iterations, -0.05 before"
    _reads(tab, ".verdict", f"{gains}; the swap gains 0.14 dB in 1,000 iterations")
    _reads(tab, "dl", "skin\n13 %")
    with open(model / "logs/steps.jsonl", "a") as file:
        file.writelines(row(301 + step, swap_quality=21.0, swap_leak=0.75) for step in range(3))
    _reads(tab, ".verdict", "the swap has not got better since 300; warning: the swap keeps 75 % of A's skin")


def test_swap_mask_zoom_and_history(open_page, model, view):
    tab = view(open_page(model))
    _reads(tab, "article", "iteration 300")
    _shows(tab, GREEN, 0.08)
    tab.keyboard.press("Space")  # from the sheet to the first swap
    _shows(tab, RED)
    assert tab.input_value("#view") == "0>1"
    tab.keyboard.press("Space")
    _shows(tab, GREEN)
    tab.keyboard.press("Space")
    _shows(tab, TINT, 0.25, 0.08)
    tab.keyboard.press("m")
    _shows(tab, RED, 0.25, 0.08)
    tab.keyboard.press("ArrowLeft")
    _reads(tab, "#chosen", "200")
    _reads(tab, ".caption", "iteration 200")
    tab.keyboard.press("ArrowLeft")
    _reads(tab, "#chosen", "100")
    _shows(tab, (200, 0, 0))
    assert "at 100:" in tab.inner_text("figure >> nth=0")
    tab.click("#live")
    _shows(tab, RED)
    tab.fill("#history", "0")
    _shows(tab, (200, 0, 0))
    tab.keyboard.press("l")
    tab.select_option("#view", "1>0")
    _shows(tab, (90, 90, 90))
    tab.keyboard.press("0")
    before = tab.locator("article canvas").bounding_box()["width"]
    for _ in range(5):
        tab.click("#larger")
    assert tab.inner_text("#zoom") == "16 x"
    width = tab.evaluate("document.querySelector('article canvas').width")
    assert tab.locator("article canvas").bounding_box()["width"] == 16 * width != before
    assert tab.evaluate("getComputedStyle(document.querySelector('article canvas')).imageRendering") == "pixelated"
    tab.keyboard.press("0")
    assert tab.locator("article canvas").bounding_box()["width"] == before


def test_buttons_and_keys_ask_the_run(open_page, model, view):
    page = open_page(model)
    with training(model) as process:
        tab, other = view(page), view(page, half="read")
        _reads(tab, ".status", "training")
        _reads(tab, ".progress", "1 min left")
        tab.click("button[data-do=save]")
        wait_until((model / "saved").exists, "the run was asked to save")
        (model / "saved").unlink()
        tab.keyboard.press("n")
        wait_until((model / "snapshot.request").exists, "the run was asked for a snapshot")
        _reads(tab, ".answer", "keep it")
        _reads(other, ".status", "training")
        _reads(other, "header", "only to look at")
        assert not other.locator("button[data-do]:visible").count()
        other.keyboard.press("x")
        assert not other.locator("dialog[open]").count()
        tab.keyboard.press("x")
        tab.click("dialog[open] >> text=go on")
        assert process.poll() is None
        tab.click("button[data-do=stop]")
        tab.click("dialog[open] >> button[value=stop]")
        assert process.wait(30) == 3
        _reads(tab, ".status", "no run")
        assert tab.locator("button[data-do=stop]").is_disabled()


def test_many_runs_side_by_side_at_the_same_iteration(open_page, tmp_path, view):
    models = [make_model(tmp_path / name) for name in ("first", "second")]
    write_picture(models[1] / "preview_history/00000150.jpg", sheet((0, 200, 200)))
    (models[1] / "preview_history/00000200.jpg").unlink()
    (models[1] / "preview_history/00000200-plain.jpg").unlink()
    tab = view(open_page(*models))
    wait_until(lambda: tab.locator("article .status").count() == 2, "both are there")
    first, second = (tab.locator("article").nth(place).bounding_box() for place in (0, 1))
    assert first["y"] == second["y"] and first["x"] < second["x"]
    _reads(tab, "#legend", "second")
    assert "first A 0.25" in tab.inner_text("figure >> nth=0") and "second A 0.25" in tab.inner_text("figure >> nth=0")
    tab.keyboard.press("Space")
    tab.keyboard.press("ArrowLeft")
    _reads(tab, "#chosen", "200")
    _reads(tab, "article >> nth=1", "iteration 150")
    _shows(tab, RED)
    _shows(tab, (0, 200, 200), run=1)
    tab.keyboard.press("Home")
    _reads(tab, "article >> nth=1", "iteration 100")
    tab.keyboard.press("2")
    assert "selected" in tab.locator("article").nth(1).get_attribute("class")


def test_light_dark_and_a_phone(open_page, model, view):
    page = open_page(model)

    def back(tab) -> int:
        color = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))

    light, dark = view(page, color_scheme="light"), view(page, color_scheme="dark")
    assert back(light) > 600 and back(dark) < 150
    light.keyboard.press("t")
    assert back(light) < 150
    light.reload()
    _reads(light, "article", "iteration 300")
    assert back(light) < 150, "it is remembered"
    phone = view(page, width=360, height=740, device_scale_factor=2, has_touch=True, is_mobile=True)
    _reads(phone, "article", "iteration 300")
    wait_until(lambda: phone.locator("figure").count() >= 7, "charts are drawn")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
    heights = [box.bounding_box()["height"] for box in phone.locator("button:visible").all()]
    assert min(heights) >= 40, "large enough for a finger"


def test_what_comes_from_a_folder_is_text(open_page, tmp_path, view):
    evil = "<img src=x onerror=alert(1)>"
    model = make_model(tmp_path / evil)
    with open(model / "logs/steps.jsonl", "a") as file:
        file.write(f'{{"run_from": 300, "time": 1, "iterations": 5, "batch_size": 8, "precision": "{evil}"}}\n')
    tab = view(open_page(model))
    _reads(tab, "article h2", evil)
    _reads(tab, "dl", evil)
    assert not tab.locator("img").count()


def test_a_server_that_is_gone_is_told_of(open_page, model, view):
    page = open_page(model)
    tab = view(page)
    _reads(tab, "article", "iteration 300")
    page.close()
    wait_until(lambda: tab.locator("#connection").is_visible(), "the page notices")
    assert "no answer" in tab.inner_text("#connection") and "iteration 300" in tab.inner_text("article")
    view.complaints[:] = [text for text in view.complaints if "ERR_" not in text]  # the browser's own words


def test_a_folder_that_is_deleted_is_told_of(open_page, model, view):
    tab = view(open_page(model))
    _reads(tab, "article", "iteration 300")
    shutil.rmtree(model)
    _reads(tab, ".status", "folder is gone")
    _reads(tab, ".nothing", "no preview yet")
    os.makedirs(Path(model))
    _reads(tab, ".status", "no run")
    # A picture that was just being asked for.
    view.complaints[:] = [text for text in view.complaints if "404" not in text]
