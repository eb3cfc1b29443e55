"""The report in a browser: headless Chromium opens the file and looks, in both languages.

Needs playwright and a Chromium (`make browser` installs Debian's); skips without them. Screenshots stay in
`test-artefacts/`.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslim.report.page import write_report
from tests.conftest import REPOSITORY
from tests.test_html_report import BENCH, made_run, put, scores

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: make browser")
ARTEFACTS = REPOSITORY / "test-artefacts"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    run = made_run(folder / "student")
    return {
        language: write_report([run], folder / f"{language}.html", language=language)
        for language in ("en", "ja")
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Look:
    """A page, with everything that it said and asked for."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-drawn]", timeout=60_000)


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_or_requests(
    language: str, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    look = Look(browser, pages[language], color_scheme=scheme)
    assert look.said == []
    assert [url for url in look.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert look.page.locator(".plot .main-svg").count() >= 10
    assert look.page.evaluate("document.documentElement.lang") == language
    ground = look.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    ink = look.page.locator(".plot .gtitle").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == ("rgb(27, 31, 36)" if scheme == "light" else "rgb(232, 234, 237)")
    ARTEFACTS.mkdir(exist_ok=True)
    look.page.screenshot(path=ARTEFACTS / f"report-{language}-{scheme}.png", full_page=True)
    look.context.close()


def test_names_that_look_like_markup_are_text(browser: Any, tmp_path: Path) -> None:
    """Once, a label that opens a comment and a script kept every picture from being drawn."""
    run = made_run(tmp_path / "student", evidence=False)
    link, script = '<a href="https://evil.example">x</a>', "<!--<script>"
    facts = scores((-0.03, 0.01))
    for row, name in zip(facts["results"], (script, link, "2024"), strict=True):
        row |= {"model": name, "conditions": {f"{link} {script}": row["conditions"]["noise, 5 dB"]}}
    cells = facts["groups"][0]["scores"]
    facts["groups"][0]["scores"] = {script: cells["teacher"], link: cells["student"]}
    put(run / "evidence" / "ks.json", facts, run)
    rows = copy.deepcopy(BENCH)
    for row in rows["results"]:
        row["model"] = script
    put(run / "evidence" / "bench.json", rows, run)
    look = Look(browser, write_report([run], tmp_path / "r.html"))
    assert look.said == []
    assert look.page.locator(".plot .main-svg").count() >= 10
    assert look.page.locator("#checklist").is_visible()
    assert look.page.locator("svg a, a[href*=evil]").count() == 0
    names = look.page.locator('[data-figure="scores-0"] .ytick').all_text_contents()
    assert sorted(names) == sorted([script, link, "2024"])
    look.context.close()


def test_a_phone_needs_no_sideways_scrolling(browser: Any, pages: dict[str, Path]) -> None:
    look = Look(browser, pages["en"], viewport={"width": 375, "height": 800})
    wide = look.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375
    look.page.screenshot(path=ARTEFACTS / "report-phone.png", full_page=True)
    look.context.close()


def test_the_calculator_recomputes(browser: Any, pages: dict[str, Path]) -> None:
    look = Look(browser, pages["en"])
    look.page.fill("#volume", "2000")
    look.page.fill("#price", "0.5")
    # 2,000 hours at real-time factors of 0.2 (the first row) and 0.05 (the student's best).
    assert look.page.inner_text("#cost-now") == "200"
    assert look.page.inner_text("#cost-after") == "50"
    assert look.page.inner_text("#cost-saved") == "1,800"
    look.page.select_option("#after", "0")
    assert look.page.inner_text("#cost-saved") == "0"
    look.context.close()


def test_hover_shows_which_units(browser: Any, pages: dict[str, Path]) -> None:
    look = Look(browser, pages["en"])
    plot = look.page.locator('[data-figure="layers-conv"]')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    look.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    plot.locator(".hoverlayer text").first.wait_for(timeout=10_000)
    assert "kept:" in plot.locator(".hoverlayer").text_content()
    look.context.close()


def test_keyboard_reaches_tables_and_fields(browser: Any, pages: dict[str, Path]) -> None:
    look = Look(browser, pages["en"])
    look.page.locator("summary").first.focus()
    look.page.keyboard.press("Enter")
    assert look.page.locator("details").first.evaluate("e => e.open")
    names = look.page.locator("input, select").evaluate_all(
        "all => all.map(e => e.labels.length > 0 && e.labels[0].textContent.trim().length > 0)"
    )
    assert names == [True] * 4
    pictures = look.page.locator(".plot").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert all(pictures)
    look.context.close()


def test_ink_stands_out(browser: Any, pages: dict[str, Path]) -> None:
    """WCAG contrast of every colour of text against its ground, in light and dark."""
    for scheme in ("light", "dark"):
        look = Look(browser, pages["en"], color_scheme=scheme)
        ratios = look.page.evaluate(
            """() => {
              const of = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
              const light = hex => [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16) / 255)
                .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
              const ratio = (a, b) => { const [x, y] = [light(of(a)), light(of(b))].sort((p, q) => q - p);
                return (x + 0.05) / (y + 0.05); };
              return ["--ink", "--soft", "--link", "--good", "--fair", "--bad"]
                .flatMap(ink => ["--ground", "--card"].map(ground => ratio(ink, ground)));
            }"""
        )
        assert min(ratios) >= 4.5
        look.context.close()


def test_print_shows_figures_and_hides_the_form(browser: Any, pages: dict[str, Path]) -> None:
    look = Look(browser, pages["en"])
    look.page.emulate_media(media="print")
    assert not look.page.locator("form").is_visible()
    assert look.page.locator("#recommendation").is_visible()
    pdf = look.page.pdf(path=ARTEFACTS / "report.pdf")
    assert len(pdf) > 50_000
    look.context.close()
