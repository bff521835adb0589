"""The leaderboard's page in a real browser: Debian's chromium, from file://, without a network."""

import json
import os
import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from leaderboard.__main__ import main
from tests.chromium import SIZES, opened, started
from tests.test_board import run

HOSTILE = "<img src=x onerror=alert(1)> $x^2$"
LEVELS = {"vae": 34.0, "lm": 34.0, "free": 32.0, "free target=8": 33.0, f"bad {HOSTILE}": 36.0}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A page of two data sets' runs."""
    folder = tmp_path_factory.mktemp("page")
    for variant, level in LEVELS.items():
        for seed in range(3):
            kl = None if variant == "lm" else level - 31
            run(folder / "results", variant, seed, level + 0.1 * seed, kl=kl, au=None)
    toy, more = folder / "results" / "toy", folder / "results" / "more"
    shutil.copytree(toy, more)
    for path in more.rglob("run.json"):
        known = json.loads(path.read_text())
        known["cell"]["dataset"] = "more"
        path.write_text(json.dumps(known))
    assert main([str(folder / "results"), "--out", str(folder)]) == 0
    return f"file://{folder / 'index.html'}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        reason = "no chromium here, which .ci/run installs"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with started(program) as browser:
        yield browser


@pytest.fixture
def page(chromium, address) -> Iterator[Page]:
    with opened(chromium, address, viewport=SIZES["wide"]) as found:
        yield found


def names(page: Page) -> list[str]:
    return page.locator("table.board").first.locator("tbody tr:visible > th").all_inner_texts()


def test_a_column_sorts_both_ways_and_what_is_not_known_stays_last(page):
    table = page.locator("table.board").first
    head = table.get_by_role("button", name="KL", exact=True)
    assert names(page)[0] == "free"  # by NLL
    head.click()
    up = names(page)
    head.click()
    down = names(page)
    assert up[-1] == down[-1] == "lm"
    assert up[:-1] == down[-2::-1]
    assert up[0] == "free" and down[0].startswith("bad")
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert "KL" in page.get_by_role("status").inner_text()


def test_names_sort_as_words_and_numbers_as_numbers(page):
    table = page.locator("table.board").first
    table.get_by_role("button", name="variant", exact=True).click()
    assert names(page) == sorted(names(page))
    table.get_by_role("button", name="NLL", exact=True).click()
    values = table.locator("tbody tr > td:nth-child(3)").all_inner_texts()
    numbers = [float(value.split()[0]) for value in values]
    assert numbers == sorted(numbers)


def test_filtering_keeps_the_rows_of_that_name(page):
    page.get_by_label("Only variants with").fill("free 8")
    assert names(page) == ["free target=8"]
    assert "2 rows" in page.get_by_role("status").inner_text()  # of two data sets
    page.get_by_role("button", name="Show all").click()
    assert len(names(page)) == len(LEVELS)


def test_a_highlighted_variant_is_so_in_all_tables_and_figures(page):
    button = page.locator("table.board").first.get_by_role("button", name="free", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    hot = page.locator(".hot")
    assert {hot.nth(i).get_attribute("data-row") for i in range(hot.count())} == {"free"}
    assert page.locator("tr.hot").count() >= 2 and page.locator("svg .series.hot").count() >= 2
    assert button.get_attribute("aria-pressed") == "true"
    page.mouse.move(0, 0)
    other = page.locator("svg .series:not(.hot)").first
    assert float(other.evaluate("e => getComputedStyle(e).opacity")) < 0.5
    page.keyboard.press("Enter")
    assert page.locator(".hot").count() == 0


def test_a_click_on_a_figure_highlights_the_row(page):
    series = page.locator('svg .series[data-row="vae"]').first
    series.dispatch_event("click")
    assert page.locator("table.board tr.hot").count() == 2


def test_two_configurations_are_compared(page):
    configs = page.locator("pre.config")
    texts = [
        "method:\n  name: a\n  floor: 1\nprecision: fp32\n",
        "method:\n  name: b\nprecision: fp32\n",
    ]
    for i, text in enumerate(texts):
        configs.nth(i).evaluate("(e, text) => { e.textContent = text; }", text)
    page.get_by_label("Other").select_option(index=1)
    rows = page.locator("#differences tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [["method.name", "a", "b"], ["method.floor", "1", "-"]]


def test_a_hostile_name_is_text_in_tables_and_figures(page):
    assert any(HOSTILE in name for name in names(page))
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible_and_fits_the_screen(chromium, address, size, scheme):
    with opened(chromium, address, viewport=SIZES[size], color_scheme=scheme) as page:
        page.locator("details").evaluate_all("all => all.forEach((each) => { each.open = true; })")
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= SIZES[size]["width"]


def test_without_scripts_all_is_there_to_read(chromium, address):
    with opened(chromium, address, java_script_enabled=False) as page:
        assert page.locator("table.board").count() == 2
        assert page.locator("svg").first.is_visible()
        assert not page.locator("#filter").is_visible()
