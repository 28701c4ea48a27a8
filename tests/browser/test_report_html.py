"""The page in a real browser: it draws, filters, changes its theme, loads nothing, and fits a phone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from tests.report.build import BAD, LAYERS

SIZES = [(390, 844), (1280, 900)]


@dataclass
class Opened:
    """A page, and what it did that it should not."""

    page: playwright.Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def loaded(browser: playwright.Browser, report_file: Path) -> Iterator[Opened]:
    """The report from a file:// address, opened once: reading the plotting library takes a browser two seconds."""
    context = browser.new_context(color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(20_000)
    found = Opened(page)
    page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
    page.on("request", lambda asked: found.requests.append(asked.url))
    page.goto(report_file.as_uri())
    page.wait_for_selector("html[data-drawn]")
    yield found
    context.close()


@pytest.fixture
def opened(loaded: Opened, report_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The page as a reader finds it, at the width asked for (desktop else); nothing it should not do is left unseen."""
    page = loaded.page
    width, height = getattr(request, "param", SIZES[1])
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme="light", media="screen")
    page.get_by_role("searchbox").fill("")
    page.locator("#capture").select_option("sim-exllama|short")
    page.evaluate("document.activeElement.blur(); window.scrollTo({ top: 0, behavior: 'instant' })")
    yield loaded
    assert loaded.complaints == []
    assert {url for url in loaded.requests if not url.startswith("data:")} == {report_file.as_uri()}


def short(layer: str) -> str:
    return layer.removeprefix("model.layers.")


def ground(page: playwright.Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("opened", SIZES, indirect=True, ids=["phone", "desktop"])
def test_fits_and_says_the_verdict_first(opened: Opened) -> None:
    """No sideways scrolling, and the sentence and what to do are on the first screen."""
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("h1").inner_text() == f"sim-exllama (prompt short) overflows at {LAYERS[BAD]}."
    box = page.locator("h1").bounding_box()
    assert box is not None and box["y"] + box["height"] < 500
    assert page.locator("#verdict ul.todo li").first.inner_text().startswith("Worked here: hf-fp16 in its place")


def test_every_picture_is_drawn_and_named(opened: Opened) -> None:
    """Each with a sentence for those who cannot see it, and no wider than its place."""
    places = opened.page.locator(".plot")
    assert places.count() == 8
    for place in places.all():
        assert place.locator("svg").count() > 0
        assert place.get_attribute("aria-label")
        drawn, room = place.locator("svg").last.bounding_box(), place.bounding_box()
        assert drawn is not None and room is not None
        assert 0 < drawn["width"] <= room["width"] + 1
    assert f"first bad: {short(LAYERS[BAD])}" in (opened.page.locator("#depth .first-bad").text_content() or "")


def test_what_is_lost_is_crossed_where_it_was_lost(opened: Opened) -> None:
    """The cross of the map stands at the bad linear's place on the axis, in the first token's row."""
    page = opened.page
    cross = page.locator("#x-map [aria-label=dot] path").last.bounding_box()
    frame = page.locator("#x-map [aria-label=raster] image").bounding_box()
    assert cross is not None and frame is not None
    middle = (cross["x"] + cross["width"] / 2 - frame["x"]) / frame["width"] * len(LAYERS)
    assert abs(middle - (BAD + 0.5)) < 0.1
    assert cross["y"] + cross["height"] / 2 - frame["y"] < frame["height"] / 7  # five tokens and two written ones


def test_sweeps_and_experiments_are_pictures(opened: Opened) -> None:
    """The two numbers between which the verdict changes, and what ran with how many rows."""
    lengths = opened.page.locator("[data-lengths]")
    assert lengths.locator(".change").all_text_contents() == ["50 | 51"]
    assert lengths.get_attribute("aria-label") == (
        "hf-fp32: 46 to 55 tokens agree; sim-exllama: 46 to 50 tokens overflow, 51 to 55 tokens agree"
    )
    assert lengths.locator("[aria-label=rect] rect").count() == 3
    rows = opened.page.locator("[data-picture=rows]")
    assert rows.locator(".change").first.text_content() == "50 | 51"
    assert "exllama-fast: 2 outputs lost" in (rows.text_content() or "")
    assert rows.locator("[aria-label=dot] path").count() == 50
    repeats = opened.page.locator("[data-picture=repeats]")
    assert "other bits than the first: 19 of 19" in (repeats.text_content() or "")


def test_a_picture_says_what_the_pointer_is_at(opened: Opened) -> None:
    """Name, token and size of what is under the pointer."""
    page = opened.page
    page.locator("#x-map").scroll_into_view_if_needed()
    frame = page.locator("#x-map [aria-label=raster] image").bounding_box()
    assert frame is not None
    x = frame["x"] + (BAD + 0.5) / len(LAYERS) * frame["width"]
    page.mouse.move(x, frame["y"] + 3)
    told = page.locator("#x-map [aria-label=tip]").text_content() or ""
    assert LAYERS[BAD] in told
    assert "2 outputs infinite or NaN" in told
    page.mouse.move(1, 1)


def test_pictures_follow_the_window(opened: Opened) -> None:
    """They are drawn anew for another width, and nothing scrolls sideways then either."""
    page = opened.page
    before = page.locator("#depth > svg").get_attribute("width")
    page.set_viewport_size({"width": 700, "height": 900})
    room = page.evaluate("document.getElementById('depth').clientWidth")
    assert str(room) != before
    playwright.expect(page.locator("#depth > svg")).to_have_attribute("width", str(room))
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_filters_by_layer(opened: Opened) -> None:
    """Tables and pictures keep what is asked for, and come back."""
    page = opened.page
    assert page.locator("#linear-rows tr").count() == len(LAYERS)
    page.get_by_role("searchbox").fill("DOWN_proj")
    names = page.locator("#linear-rows th").all_inner_texts()
    assert names == [layer for layer in LAYERS if "down_proj" in layer]
    assert page.locator("#count").inner_text() == f"{len(names)} of {len(LAYERS)} linears"
    assert page.locator("#headroom [aria-label=rect] rect").count() == len(names)
    assert f"of {len(names)} linears" in (page.locator("#x-map").get_attribute("aria-label") or "")
    page.get_by_role("searchbox").fill("nothing like it")
    assert page.locator("#linear-rows tr").count() == 0
    page.get_by_role("searchbox").fill("")
    assert page.locator("#linear-rows tr").count() == len(LAYERS)


def test_chooses_a_capture_by_the_matrix_and_by_the_list(opened: Opened) -> None:
    """What has no maps says why; the pressed result is the one that is shown."""
    page = opened.page
    page.get_by_role("button", name="hf-fp32, prompt short").click()
    assert page.locator("#capture").input_value() == "hf-fp32|short"
    assert page.locator("[data-capture][aria-pressed=true]").get_attribute("data-capture") == "hf-fp32|short"
    assert "not stored beside this report" in page.locator("#x-map").inner_text()
    page.locator("#capture").select_option("sim-exllama|long")
    assert "judgements of this capture are not stored" in page.locator("#depth").inner_text()
    page.locator("#capture").select_option("sim-exllama|short")
    assert page.locator("#depth svg").count() > 0
    assert page.locator("#linear-rows tr.bad th").inner_text() == LAYERS[BAD]


def test_theme(opened: Opened) -> None:
    """As the system says until somebody chooses; what was chosen is kept."""
    page = opened.page
    light = ground(page)
    page.emulate_media(color_scheme="dark")
    dark = ground(page)
    assert light != dark
    page.get_by_role("button", name="Switch to the light theme").click()
    assert ground(page) == light
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    assert ground(page) == light
    page.evaluate("window.localStorage.clear(); delete document.documentElement.dataset.theme")


def test_by_keyboard(opened: Opened) -> None:
    """The first stop leads past the header; a result is chosen with Enter; the focus can be seen."""
    page = opened.page
    page.reload()
    page.wait_for_selector("html[data-drawn]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.locator('button[data-capture="hf-fp32|short"]').focus()
    page.keyboard.press("Enter")
    assert page.locator("#capture").input_value() == "hf-fp32|short"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_printed(opened: Opened) -> None:
    """On white, no wider than the paper, whatever the theme was."""
    page = opened.page
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1000})
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert ground(page) == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#depth > svg").get_attribute("width") == "680"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
