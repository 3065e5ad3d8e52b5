"""The report in a real browser: what is drawn, at which sizes, in which colours, and what the keyboard reaches.

The browser is the Chromium on PATH. Without one these tests are skipped, unless REQUIRE_CHROMIUM is set, as CI does.
"""

import csv
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Repository
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from test_report import two_revisions

pytestmark = pytest.mark.slow  # a browser
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
SCHEMES = ("light", "dark")
CHARTS = ("loss", "accuracy", "confusion", "classes")

# Each text with the contrast between its colour and all that is painted below it: WCAG 2.2, definitions of contrast
# ratio and relative luminance. Vega's drawings take no part in hit tests unless made to.
CONTRASTS = """
() => {
  const style = document.createElement("style");
  style.textContent = "* { pointer-events: all !important }";
  document.head.append(style);
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  const channels = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (below, [r, g, b], alpha) => [r, g, b].map((c, i) => alpha * c + (1 - alpha) * below[i]);
  const opacity = (element) => {
    let product = 1;
    for (let e = element; e; e = e.parentElement) product *= Number(getComputedStyle(e).opacity);
    return product;
  };
  const paint = (element, isText) => {
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    if (svg && !element.matches("path, rect, circle, text")) return [0, 0, 0, 0];
    const color = svg ? style.fill : isText ? style.color : style.backgroundColor;
    if (color === "none") return [0, 0, 0, 0];
    const [r, g, b, a] = channels(color);
    return [r, g, b, a * (svg ? Number(style.fillOpacity) : 1) * opacity(element)];
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, range = document.createRange();
    if (!walker.currentNode.data.trim() || element.matches("script, noscript, .skip")) continue;
    element.scrollIntoView({ block: "center", inline: "center" });
    range.selectNodeContents(walker.currentNode);
    const box = range.getClientRects()[0];
    if (!box || !box.width) continue;
    const stack = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    const below = stack.filter((e) => !e.matches("text, tspan")).reverse();
    let background = [255, 255, 255];
    for (const e of below) {
      const [r, g, b, a] = paint(e, false);
      background = over(background, [r, g, b], a);
    }
    const [r, g, b, a] = paint(element, true);
    const pair = [luminance(over(background, [r, g, b], a)), luminance(background)].sort((x, y) => y - x);
    found.push({
      text: walker.currentNode.data.trim(), chart: element.closest(".chart")?.id ?? null,
      hit: stack.some((e) => e === element || element.contains(e) || e.contains(element)),
      contrast: (pair[0] + 0.05) / (pair[1] + 0.05),
    });
  }
  style.remove();
  return found;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        reason = f"expected one of {', '.join(NAMES)} on PATH, found none: install one, such as Debian's first"
        (pytest.fail if "REQUIRE_CHROMIUM" in os.environ else pytest.skip)(reason)
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to make one for root
        running = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield running
        running.close()


@pytest.fixture(scope="module")
def made(reproduced: Repository, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The page of the small pipeline with a comparison, and the numbers in its charts."""
    clone = two_revisions(reproduced, tmp_path_factory.mktemp("report") / "clone")
    clone.run("python", "-m", "tools.results.report", "<script>alert(1)</script>")
    path = clone.root / "report.html"
    data = re.search('id="data">(.*?)</script>', path.read_text())
    assert data
    return SimpleNamespace(url=path.as_uri(), root=clone.root, data=json.loads(data[1]))


@pytest.fixture(scope="module")
def visit(browser: Browser, made: SimpleNamespace) -> Iterator[Any]:
    """Open the page without a network; at the end, no request but for the page and no complaint may have been made."""
    seen: list[str] = []
    urls = []

    def visited(size: str = "desktop", scheme: str = "light", url: str = made.url, **options: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        urls.append(url)
        context.set_offline(True)
        page = context.new_page()
        page.on("request", lambda request: seen.append(f"request: {request.url[:100]}"))
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.goto(url)
        if options.get("java_script_enabled", True):
            page.wait_for_function("document.querySelectorAll('.chart > svg, .chart > * > svg').length === 4")
        return page

    yield visited
    assert {line for line in seen if not line.startswith("request: data:")} == {f"request: {url}" for url in urls}


@pytest.fixture(scope="module", params=[(size, scheme) for size in SIZES for scheme in SCHEMES], ids="-".join)
def page(request: pytest.FixtureRequest, visit: Any) -> Iterator[Page]:
    """The page in each size and scheme, opened once: its tests open details and scroll, and change nothing else."""
    opened: Page = visit(*request.param)
    yield opened
    opened.context.close()


def marks(page: Page, chart: str, kind: str) -> Locator:
    return page.locator(f'#{chart} svg [aria-roledescription="{kind}"]')


def boxes(marks: Locator) -> list[dict[str, float]]:
    """The rectangles (x, y, width, height) in pixels."""
    return marks.evaluate_all("marks => marks.map(mark => mark.getBoundingClientRect().toJSON())")


# What is drawn.


def test_the_confusion_matrix_has_a_cell_for_each_pair_with_its_count(page: Page, made: SimpleNamespace) -> None:
    cells = made.data["cells"]
    labels = marks(page, "confusion", "rect mark").evaluate_all("marks => marks.map(mark => mark.ariaLabel)")
    assert len(labels) == len(cells) == 100
    for cell, label in zip(cells, labels, strict=True):
        said = dict(part.split(": ") for part in label.split("; "))
        assert (said["actual"], said["predicted"]) == (cell["actual"], cell["predicted"])
        assert int(said["count"]) == cell["count"]
    texts = page.locator("#confusion svg .mark-text.role-mark text").all_text_contents()
    assert [int(text) for text in texts if text] == [cell["count"] for cell in cells if cell["count"]]


def test_correct_and_incorrect_cells_have_colours_of_their_own(page: Page, made: SimpleNamespace) -> None:
    fills = marks(page, "confusion", "rect mark").evaluate_all(
        "marks => marks.map(mark => getComputedStyle(mark).fill)"
    )
    colours = {
        outcome: {fill for fill, cell in zip(fills, made.data["cells"], strict=True) if cell["outcome"] == outcome}
        for outcome in ("correct", "incorrect")
    }
    assert [len(colour) for colour in colours.values()] == [1, 1]
    assert colours["correct"] != colours["incorrect"]


def test_each_class_has_a_bar_from_zero_and_its_interval(page: Page, made: SimpleNamespace) -> None:
    classes = made.data["classes"]
    bars = boxes(marks(page, "classes", "bar"))
    rules = boxes(page.locator("#classes svg .mark-rule.role-mark line"))
    assert len(bars) == len(rules) == len(classes) == 10
    area = boxes(page.locator("#classes svg .background"))[0]
    unit = area["width"]  # accuracy 1
    for bar, rule, row in zip(bars, rules, classes, strict=True):
        assert bar["x"] == pytest.approx(area["x"], abs=0.5)
        assert bar["width"] == pytest.approx(unit * row["accuracy"], abs=1)
        assert rule["x"] - bar["x"] == pytest.approx(unit * row["low"], abs=1.5)
        assert rule["width"] == pytest.approx(unit * (row["high"] - row["low"]), abs=1.5)


@pytest.mark.parametrize(
    ("chart", "columns"), [("loss", ["train_loss", "validation_loss"]), ("accuracy", ["validation_accuracy"])]
)
def test_each_line_has_a_point_an_epoch_at_its_height(
    page: Page, made: SimpleNamespace, chart: str, columns: list[str]
) -> None:
    history = made.data["history"]
    points = boxes(marks(page, chart, "point"))
    values = [epoch[column] for column in columns for epoch in history]
    drawn = sorted(point["y"] + point["height"] / 2 for point in points)
    assert len(points) == len(columns) * len(history)
    ranked = sorted(values, reverse=True)  # y grows downwards
    slope = (drawn[-1] - drawn[0]) / (ranked[0] - ranked[-1])
    assert drawn == pytest.approx([drawn[0] + slope * (ranked[0] - value) for value in ranked], abs=1)
    lines = page.locator(f"#{chart} svg .mark-line path")
    dashes = lines.evaluate_all("lines => lines.map(line => line.getAttribute('stroke-dasharray'))")
    assert len(dashes) == len({*dashes}) == len(columns)  # distinguishable without colours too


@pytest.mark.parametrize(("size", "epochs"), [("desktop", 1), ("phone", 1000)])
def test_axes_are_labelled_with_the_epochs_and_values_that_they_cross(
    visit: Any, made: SimpleNamespace, size: str, epochs: int
) -> None:
    names = ("train_loss", "validation_loss", "validation_accuracy")
    history = [dict.fromkeys(names, 0.5 + 0.25 / epoch) | {"epoch": epoch} for epoch in range(1, epochs + 1)]
    data = json.dumps(made.data | {"history": history})
    text = (made.root / "report.html").read_text()
    other = made.root / f"{size}-{epochs}.html"
    other.write_text(re.sub(r'(id="data">).*?(</script>)', lambda match: f"{match[1]}{data}{match[2]}", text))
    page = visit(size, url=other.as_uri())
    for chart, axis, side, values in (
        ("loss", "X", ("x", "width"), [epoch["epoch"] for epoch in history]),
        ("accuracy", "X", ("x", "width"), [epoch["epoch"] for epoch in history]),
        ("accuracy", "Y", ("y", "height"), [epoch["validation_accuracy"] for epoch in history]),
    ):
        labels = page.locator(f'#{chart} svg [aria-label^="{axis}-axis"] .role-axis-label text')
        shown = [float(label.replace(",", "")) for label in labels.all_text_contents()]
        middles = [box[side[0]] + box[side[1]] / 2 for box in boxes(labels)]
        first, *_, last = [point[side[0]] + point[side[1]] / 2 for point in boxes(marks(page, chart, "point")) * 2]
        scale = (last - first) / (values[-1] - values[0]) if epochs > 1 else 0
        assert len(shown) == len({*shown}) > 0
        assert {*shown} <= {*values} or axis == "Y"  # between two epochs is nothing
        assert shown == [values[0]] or epochs > 1
        assert middles == pytest.approx([first + scale * (value - values[0]) for value in shown], abs=4)


def test_pictures_are_drawn_and_say_what_they_show(page: Page) -> None:
    for picture in page.locator("img").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
        assert picture.evaluate("image => image.naturalWidth * image.height / image.width / image.naturalHeight") == (
            pytest.approx(1, abs=0.01)
        )
        assert len(picture.get_attribute("alt") or "") > 20
    assert page.locator("img").count() == 1
    for chart in CHARTS:
        place = page.locator(f"#{chart}")
        assert place.get_attribute("role") == "graphics-document"
        assert place.get_attribute("aria-label") == page.locator(f"figure:has(#{chart}) figcaption").inner_text()


# How it fits.


def test_nothing_is_wider_than_the_window(page: Page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    inside = page.locator("main *:not(.scroll *)").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert inside == []
    for chart in CHARTS:  # drawn for its place, not shrunk to it
        (drawing,), (place,) = boxes(page.locator(f"#{chart} svg")), boxes(page.locator(f"#{chart}"))
        assert drawing["width"] == pytest.approx(place["width"], abs=1)
        assert drawing["width"] == pytest.approx(float(page.get_attribute(f"#{chart} svg", "width") or 0), abs=1)


def test_no_text_of_a_chart_is_cut_off(page: Page) -> None:
    for chart in CHARTS:
        (frame,) = boxes(page.locator(f"#{chart} svg").first)
        for text in boxes(page.locator(f"#{chart} svg text")):
            assert frame["left"] - 1 <= text["left"]
            assert text["right"] <= frame["right"] + 1
            assert frame["top"] - 1 <= text["top"]
            assert text["bottom"] <= frame["bottom"] + 1


def test_charts_follow_the_width_of_the_window(visit: Any) -> None:
    page = visit("desktop")
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function(
        "[...document.querySelectorAll('.chart svg')].every(e => e.getBoundingClientRect().right <= 360)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_every_text_stands_out_from_what_is_below_it(page: Page) -> None:
    texts = page.evaluate(CONTRASTS)
    assert {text["chart"] for text in texts} == {None, *CHARTS}
    assert [text for text in texts if not text["hit"]] == []
    assert [text for text in texts if text["contrast"] < 4.5] == []
    assert len(texts) > 400


def test_light_dark_and_paper_have_their_colours(visit: Any) -> None:
    def page_colours(page: Page) -> tuple[str, str]:
        chart = page.locator("#loss svg .mark-text text").first.evaluate("text => getComputedStyle(text).fill")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), chart

    light, dark = visit(scheme="light"), visit(scheme="dark")
    assert page_colours(light)[0] == "rgb(255, 255, 255)"
    assert set(page_colours(light)) & set(page_colours(dark)) == set()
    dark.emulate_media(media="print", color_scheme="dark")
    assert page_colours(dark) == page_colours(light)


# What pointer and keyboard do.


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_pointer_shows_the_numbers_below_it(visit: Any, made: SimpleNamespace, scheme: str) -> None:
    page = visit(scheme=scheme)
    tooltip = page.locator("#vg-tooltip-element")
    cell = next(i for i, cell in enumerate(made.data["cells"]) if cell["count"])
    marks(page, "confusion", "rect mark").nth(cell).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert str(made.data["cells"][cell]["count"]) in tooltip.inner_text().split()
    bar = next(i for i, row in enumerate(made.data["classes"]) if 0 < row["accuracy"] < 1)
    marks(page, "classes", "bar").nth(bar).hover(force=True)
    expected = made.data["classes"][bar]
    page.wait_for_function(
        "text => document.getElementById('vg-tooltip-element').innerText.includes(text)", arg=f"{expected['high']:.4f}"
    )
    assert expected["class"] in tooltip.inner_text()
    for chart in ("loss", "accuracy"):
        page.locator(f"#{chart} svg").scroll_into_view_if_needed()
        last = boxes(marks(page, chart, "point"))[-1]
        page.mouse.move(last["x"] - 10, last["y"] - 10)
        page.mouse.move(last["x"] - 8, last["y"] - 8)
        expected = made.data["history"][-1]
        page.wait_for_function(
            "text => document.getElementById('vg-tooltip-element').innerText.includes(text)",
            arg=f"{expected['validation_accuracy' if chart == 'accuracy' else 'train_loss']:.6f}",
        )
        assert str(expected["epoch"]) in tooltip.inner_text().split()
    assert [text for text in page.evaluate(CONTRASTS) if text["contrast"] < 4.5] == []


def test_a_click_in_the_legend_singles_out_a_curve(visit: Any) -> None:
    page = visit()
    opacities = (
        "lines => lines.map(line => Number(getComputedStyle(line).strokeOpacity) * getComputedStyle(line).opacity)"
    )
    lines = page.locator("#loss svg .mark-line path")
    assert lines.evaluate_all(opacities) == [1, 1]
    page.locator("#loss svg .role-legend-label text", has_text="validation").click(force=True)
    page.wait_for_function("() => getComputedStyle(document.querySelector('#loss svg .mark-line path')).opacity < 1")
    assert lines.evaluate_all(opacities) == [pytest.approx(0.2), 1]


@pytest.mark.parametrize("size", SIZES)
def test_tab_reaches_the_skip_link_every_summary_and_every_box_that_scrolls_and_shows_where_it_is(
    visit: Any, size: str
) -> None:
    page = visit(size)
    focus = """() => {
      const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
      return {tag: e.tagName, name: e.ariaLabel ?? e.innerText, ring: style.outlineStyle === "none" ? 0
              : parseFloat(style.outlineWidth), seen: box.width > 0 && box.top < innerHeight && box.bottom > 0};
    }"""
    boxes_of = "all => all.filter(e => !e.closest('details')).map(e => e.ariaLabel)"
    expected = [
        "Skip to the results",
        *["The numbers of this chart"] * 4,
        *page.locator(".scroll").evaluate_all(boxes_of),
    ]
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focus))
    assert sorted(stop["name"] for stop in reached) == sorted(expected)
    assert reached[0]["name"] == "Skip to the results"
    assert [stop for stop in reached if stop["ring"] < 2 or not stop["seen"]] == []


def test_the_skip_link_leads_to_the_results(visit: Any) -> None:
    page = visit()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_headings_and_landmarks_are_in_order(page: Page) -> None:
    levels = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.locator("body > header, body > main, body > footer").count() == 3
    assert page.locator("html").get_attribute("lang") == "en"
    names = "all => all.map(e => e.ariaLabel ?? document.getElementById(e.getAttribute('aria-labelledby')).innerText)"
    assert all(page.locator("section, [role=region]").evaluate_all(names))
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(ids) == len({*ids})


def test_without_scripts_the_numbers_are_there_and_a_line_says_what_is_not(visit: Any, made: SimpleNamespace) -> None:
    page = visit(java_script_enabled=False)
    text = page.locator("main").inner_text()
    scores = json.loads((made.root / "metrics/evaluate.json").read_text())
    for score in scores.values():
        assert f"{score['accuracy']:.4f}" in text
    assert "The charts need JavaScript" in text
    confusion = [*csv.DictReader((made.root / "plots/predictions.csv").read_text().splitlines())]
    assert page.locator("details table").count() == 4
    assert str(sum(row["actual"] == row["predicted"] for row in confusion)) in text


# DVC's own pages.


def test_dvc_s_pages_draw_every_chart_without_a_network(
    reproduced: Repository, browser: Browser, tmp_path: Path
) -> None:
    clone = reproduced.clone(tmp_path / "clone")
    (clone.root / ".venv").mkdir()
    clone.run("python", "-m", "tools.setup.plots", ".venv/plots.html")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "Next")
    assert clone.changed() == set()
    for words in (["show"], ["diff", "HEAD~1"]):
        clone.dvc("plots", *words, "--out", "dvc_plots")
        context = browser.new_context(offline=True)
        page, requests = context.new_page(), []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.goto((clone.root / "dvc_plots/index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.vega-embed svg.marks').length === 4")
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        context.close()
