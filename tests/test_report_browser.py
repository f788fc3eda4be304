"""The page in a real browser: on a phone, a tablet and a desk, light and dark, without a network, an error, or a mouse."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from report_runs import background, hostile, ordinary

from ckptmgr import CheckpointManager, KeepLast
from ckptmgr.report.contents import contents
from ckptmgr.report.rendering import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [  # it runs as root in CI, and asks nobody for anything
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
UNDRAWN = ".plot:not(:has(.main-svg))"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

# Contrast as WCAG 2 has it, of every element with text of its own against the nearest background that is not transparent.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const isText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!isText || node.closest("script, style, noscript") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = rgb(node.closest("svg") ? style.fill : style.color);
    if (node.closest(".treemaplayer, .pathbar")) continue;
    const [a, b] = [light(ink), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([node.textContent.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return low;
}"""
TILES = """() => [...document.querySelectorAll(".treemaplayer .slice")].map((tile) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number).slice(0, 3);
  const light = (c3) => c3.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const [text, surface] = [tile.querySelector("text"), tile.querySelector("path.surface")];
  if (!text || !text.textContent) return 21;
  const [a, b] = [light(rgb(getComputedStyle(text).fill)), light(rgb(getComputedStyle(surface).fill))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})"""
UNNAMED = """() => [...document.querySelectorAll("a, button, select, summary, [role=img], [role=region], nav, section")]
  .filter((node) => {
    const by = node.getAttribute("aria-labelledby");
    const label = node.id && document.querySelector(`label[for=${node.id}]`);
    const text = node.matches("a, button, summary") && node.textContent.trim();
    return !(node.getAttribute("aria-label") || (by && document.getElementById(by)) || label || text);
  }).map((node) => node.outerHTML.slice(0, 80))"""
FOCUSABLE = """() => [...document.querySelectorAll("a[href], button, select, summary, [tabindex='0']")]
  .filter((node) => node.getClientRects().length && !node.closest("details:not([open]) > :not(summary)"))
  .map((node) => node.textContent.trim().slice(0, 30) || node.outerHTML.slice(0, 60))"""
FOCUSED = (
    "() => { const node = document.activeElement; return node.textContent.trim().slice(0, 30) || node.outerHTML.slice(0, 60); }"
)


class Shown(NamedTuple):
    """A page as a browser shows it, and what went wrong: errors and warnings of its console, requests beyond its own file."""

    page: Any
    complaints: list[str]
    requests: list[str]

    def draw(self) -> None:
        """Scrolls through the page until every chart is there."""
        for _ in range(40):
            left = self.page.locator(UNDRAWN)
            if not left.count():
                return
            left.first.scroll_into_view_if_needed(timeout=PATIENCE_MS)
            self.page.wait_for_timeout(50)  # a chart is drawn when it comes into view
        raise AssertionError(self.complaints or self.page.evaluate("() => document.body.innerText"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind of run."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "empty").mkdir()
    made: dict[str, Any] = {
        "ordinary": (ordinary(folder / "ordinary"), {"retention": KeepLast(2), "read": 3, "compare": (300, 1200)}),
        "hostile": (hostile(folder / "hostile"), {"read": 2, "compare": (1, 2)}),
        "one": (ordinary(folder / "one", steps=1), {"read": 1}),
        "background": (background(folder / "background"), {}),
        "empty": (folder / "empty", {}),
    }
    for name, (run, options) in made.items():
        with CheckpointManager(run) as manager:
            page = render(contents(manager, made=datetime(2026, 1, 1, tzinfo=UTC), **options))
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def show(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def opened(name: str, width: int = 1440, scheme: str = "light") -> Shown:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        shown = Shown(context.new_page(), [], [])
        shown.page.set_default_timeout(PATIENCE_MS)
        shown.page.on("console", lambda said: shown.complaints.append(said.text) if said.type in ("error", "warning") else None)
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.goto(pages[name].as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *(("ordinary", width, scheme) for width in (320, 768, 1440) for scheme in ("light", "dark")),
        *((name, *view) for name in ("hostile", "one", "empty", "background") for view in ((320, "dark"), (1440, "light"))),
    ],
)
def test_page_fits_is_legible_and_asks_nobody(show: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    shown = show(name, width, scheme)
    shown.draw()

    assert shown.complaints == []
    assert [url for url in shown.requests if url != pages[name].as_uri() and not url.startswith("data:")] == []
    assert shown.page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert shown.page.evaluate(CONTRAST) == []
    assert min(shown.page.evaluate(TILES), default=21) >= 4.5
    assert shown.page.evaluate(UNNAMED) == []
    assert shown.page.evaluate("() => window.harmed") is None


def test_keys_reach_everything_in_reading_order(show: Any) -> None:
    shown = show("ordinary")
    shown.draw()
    expected = shown.page.evaluate(FOCUSABLE)

    reached = []
    shown.page.evaluate("() => { scrollTo(0, 0); document.activeElement.blur(); }")
    for _ in expected:
        shown.page.keyboard.press("Tab")
        reached.append(shown.page.evaluate(FOCUSED))

    assert reached[:2] == ["Skip to the contents", "Theme: auto"]
    assert reached == expected


def test_the_skip_link_leads_past_the_navigation(show: Any) -> None:
    shown = show("ordinary")

    shown.page.keyboard.press("Tab")
    shown.page.keyboard.press("Enter")

    assert shown.page.evaluate("() => document.activeElement.id") == "main"


def test_the_theme_button_overrides_the_system_and_redraws_the_charts(show: Any) -> None:
    shown = show("ordinary", scheme="light")
    shown.draw()

    def colours() -> tuple[str, str]:
        found: list[str] = shown.page.evaluate(
            "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('.js-line')).stroke]"
        )
        return found[0], found[1]

    button = shown.page.get_by_role("button", name="Theme")
    seen = [colours()]
    for _ in range(3):
        button.click()
        shown.page.wait_for_timeout(100)
        seen.append(colours())

    auto, light, dark, again = seen
    assert auto == light == again
    assert dark[0] != light[0]
    assert dark[1] != light[1]


def test_the_bars_of_a_save_stand_on_each_other_in_three_colours(show: Any) -> None:
    shown = show("background")
    shown.draw()

    bars = shown.page.locator("[data-figure=durations] .barlayer .trace")
    colours = [bars.nth(index).locator("path").first.evaluate("bar => getComputedStyle(bar).fill") for index in range(3)]

    assert bars.count() == 3
    assert len({*colours}) == 3
    assert "40 saves: the median took" in shown.page.locator("#time").inner_text()
    assert "40 saves: the median took" in shown.page.locator("[data-figure=durations]").get_attribute("aria-label")


def test_another_tensor_can_be_chosen(show: Any) -> None:
    shown = show("ordinary")
    shown.draw()
    before = shown.page.locator("[data-chosen=norm] .js-line").get_attribute("d")

    shown.page.get_by_label("Tensor", exact=True).select_option(index=1)
    shown.page.wait_for_timeout(100)

    assert shown.page.locator("[data-chosen=norm]").get_attribute("data-figure") == "norm-1"
    assert shown.page.locator("[data-chosen=norm] .js-line").get_attribute("d") != before
    assert shown.complaints == []


def test_tables_are_there_without_scripts(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["ordinary"].as_uri())

    assert page.locator("#steps tbody th[scope=row]").count() == 6
    assert "the latest 0.181436 at step 1200" in page.locator("#metrics figcaption").first.inner_text()
    context.close()
