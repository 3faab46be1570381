"""The page as a person meets it: a browser, a mouse, a keyboard, a phone, a screen reader's rules.

Needs the system's chromium. Run by ``tox -e browser``; ``EXITBENCH_SCREENSHOTS=FOLDER`` keeps pictures of the page.
"""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from bench_core.board.board import read_board
from bench_core.board.published import PUBLISHED_COLUMNS
from bench_core.board.schema import TRAINING_COLUMNS
from bench_core.plugins import load_registry
from bench_core.report.gallery import read_extras
from bench_core.report.write import write_report
from tests.browser.boards import POINTS, SCRIPT, Squares, make_board

VIEWS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "has_touch": True},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True},
}
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with hostile names on it."""
    place = tmp_path_factory.mktemp("page")
    make_board(strategy=SCRIPT, folder=place)
    board = read_board(place)
    extras = read_extras(place, board, POINTS[0], load_registry([]).strategies, {"squares": Squares()})
    write_report(board, extras, place, ["html"], POINTS[0])
    return (place / "leaderboard.html").as_uri()


@pytest.fixture(scope="module")
def whole_address(tmp_path_factory):
    """The same with what only some boards have: seeds, corruption, a training log, published figures."""
    place = tmp_path_factory.mktemp("whole")
    board = make_board(strategy=SCRIPT, whole=True)
    log = [
        {"workload": "first", "stage": stage, "epoch": epoch, "loss": 1 / epoch, "accuracy": 1 - 1 / epoch}
        for stage in ("trunk", "branch")
        for epoch in (1, 2, 3)
    ]
    board.training = pd.DataFrame(log, columns=list(TRAINING_COLUMNS))
    published = [SCRIPT, "a network with a long name", "squares", "4", "96.1", "1.08", "somebody", "a table", "on test"]
    board.published = pd.DataFrame([published], columns=list(PUBLISHED_COLUMNS))
    write_report(board, {}, place, ["html"], POINTS[0])
    return (place / "leaderboard.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("no chromium on this machine; install the Debian package `chromium`")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a view; what the page asks for or complains of is in ``page.heard``."""
    contexts = []

    def open_page(view="desktop-light", fragment="", address=address, **options):
        context = browser.new_context(**VIEWS[view], **options)
        contexts.append(context)
        page = context.new_page()
        page.heard = []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("dialog", lambda dialog: page.heard.append(dialog.message))
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", address)) or page.heard.append(request.url),
        )
        page.goto(address + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()


def column(page, name):
    """The cells of a column of the first board that is shown."""
    return page.evaluate(
        """name => {
            const table = [...document.querySelectorAll(".board")].find(table => table.offsetParent);
            const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent.trim() === name);
            return [...table.tBodies].filter(b => b.offsetParent)
                .map(b => b.rows[0].cells[head.cellIndex].textContent.trim());
        }""",
        name,
    )


def figures(cells):
    return [float(cell.split()[0]) for cell in cells if cell != "n/a"]


@pytest.mark.parametrize("view", VIEWS)
def test_it_opens_with_no_complaint_and_no_request(visit, view):
    page = visit(view)
    page.wait_for_timeout(200)
    assert page.heard == []
    assert page.locator("h1").inner_text().startswith("tiny")
    assert page.locator(".board tbody:visible").count() == 8
    if folder := os.environ.get("EXITBENCH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{view}.png", full_page=True)


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_never_scrolls_sideways(visit, view):
    page = visit(view)
    page.select_option("#point", "")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.locator(".row-toggle:visible").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(box => box.getBoundingClientRect().right <= innerWidth)"
    )


def test_sorting_changes_the_order_and_back(visit):
    page = visit()
    head = page.locator(".board th:visible", has_text="accuracy %").first
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    rising = figures(column(page, "accuracy %"))
    assert rising == sorted(rising)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert figures(column(page, "accuracy %")) == rising[::-1]
    assert page.locator(".board th[aria-sort]:visible").count() == 1


def test_what_is_not_available_is_sorted_last_both_ways(visit):
    page = visit()
    page.select_option("#workload", "1")
    head = page.locator(".board th:visible button", has_text="accuracy %").first
    for _ in range(2):
        head.click()
        assert column(page, "accuracy %")[-1] == "n/a"


def test_filters_change_what_is_shown(visit):
    page = visit()
    assert page.locator("#count").inner_text() == "8 rows shown"
    page.select_option("#workload", "0")
    assert page.locator("#count").inner_text() == "4 rows shown"
    assert page.locator(".workload:visible").count() == 1
    page.select_option("#point", "")
    assert page.locator("#count").inner_text() == "8 rows shown"
    assert page.locator("th:visible", has_text="(memory)").count() == 0
    assert page.locator("figure:visible").count() == 3
    page.select_option("#model", "1")
    assert page.locator("th:visible", has_text="(cmos45)").count() == 0
    assert page.locator("th:visible", has_text="(memory)").count() == 4
    page.locator(".workload:visible .key input").first.uncheck()
    assert page.locator("#count").inner_text() == "6 rows shown"
    assert page.locator(".plot .s0:visible").count() == 0


def test_pointing_names_the_policy_and_a_click_leads_to_its_row(visit):
    page = visit()
    mark = page.locator(".plot .mark:visible").nth(1)
    name = mark.get_attribute("aria-label")
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.locator("#tip").inner_text()
    assert ": k " in said or ": threshold " in said or ": t " in said
    assert "avg exit t" in said
    assert name.split(",")[0] in page.locator("#tip").inner_text() or said
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    lit = page.locator("tbody.lit")
    assert lit.count() == 1
    assert said.startswith(lit.locator("th .name").inner_text())
    assert page.evaluate("document.querySelector('.lit').contains(document.activeElement)")
    assert page.heard == []


def test_a_point_of_a_line_names_its_knob_too(visit):
    page = visit()
    page.evaluate("document.querySelector('.plot .spots').scrollIntoView({block: 'center'})")
    spot = page.locator(".plot .spot:not(.mark)[href]").first
    box = spot.locator("circle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip").is_visible()
    assert "avg exit t" in page.locator("#tip").inner_text()


def test_the_keyboard_reaches_marks_rows_and_headers(visit):
    page = visit()
    mark = page.locator(".plot a.mark:visible").first
    mark.focus()
    assert page.locator("#tip").inner_text() == mark.get_attribute("aria-label")
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    mark.focus()
    page.keyboard.press("Enter")
    assert page.locator("tbody.lit").count() == 1
    page.keyboard.press("Enter")  # the row's own button has the focus now
    assert page.locator("tbody.lit .more dl").is_visible()
    assert "weights" in page.locator("tbody.lit .more dl").inner_text()
    assert "version.torch" in page.locator("tbody.lit .more dl").inner_text()


def test_a_finger_reads_first_and_follows_the_second_time(visit):
    page = visit("phone-light")
    mark = page.locator(".plot .mark:visible").first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    place = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.touchscreen.tap(*place)
    assert page.locator("#tip").is_visible()
    assert page.locator("tbody.lit").count() == 0
    page.touchscreen.tap(*place)
    assert page.locator("tbody.lit").count() == 1


def test_an_address_with_a_row_opens_it_whatever_is_filtered(visit):
    page = visit(fragment="#r1")
    assert page.locator("tbody#r1.lit").is_visible()


def test_what_is_shown_is_downloaded(visit, tmp_path):
    page = visit()
    with page.expect_download() as shown:
        page.click("#download")
    text = Path(shown.value.path()).read_text(encoding="utf-8")
    assert len(text.splitlines()) == 2 + 8
    assert SCRIPT in text
    with page.expect_download() as rows:
        page.click("#download-all")
    assert Path(rows.value.path()).read_text(encoding="utf-8").startswith("suite,workload,strategy")
    assert page.heard == []


def test_a_name_that_is_a_script_is_text(visit):
    page = visit()
    assert page.locator("th .name:visible", has_text=SCRIPT).count() == 2
    assert page.locator("script").count() == 1
    assert page.heard == []


def test_without_javascript_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".board:visible").count() == 4
    assert page.locator("figure:visible").count() == 8
    assert page.locator("#filters").is_hidden()
    assert page.locator(".plot title").count() > 100
    page.locator(".more summary").first.click()
    assert page.locator(".more dl").first.is_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_seeds_and_corruption_open_with_no_complaint_and_fit(visit, whole_address, view):
    page = visit(view, address=whole_address)
    page.wait_for_timeout(200)
    assert page.heard == []
    assert page.locator("h2", has_text="Over seeds").is_visible()
    assert page.locator("h3:visible", has_text="over seeds").count() == 1
    assert page.locator("h3:visible", has_text="under corruption").count() == 3
    assert page.locator("figure:visible", has_text="first, iso-accuracy:0.5: noise").count() == 1
    page.select_option("#point", "")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(box => box.getBoundingClientRect().right <= innerWidth)"
    )
    assert page.heard == []
    if folder := os.environ.get("EXITBENCH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"whole-{view}.png", full_page=True)


def test_filters_and_boxes_hold_under_corruption_too(visit, whole_address):
    page = visit(address=whole_address)
    charts, rows = page.locator("figure:visible", has_text=": blur"), page.locator("tbody[data-s]:visible")
    assert charts.count() == 3
    before = rows.count()
    page.select_option("#workload", "0")
    assert charts.count() == 1
    page.locator(".workload:visible .key input").first.uncheck()
    assert rows.count() < before / 3
    assert page.locator(".plot .s0:visible").count() == 0
    page.select_option("#point", "1")
    assert page.locator("figure:visible", has_text="first, budget:0.5: blur").count() == 1
    assert page.heard == []


def test_pointing_under_corruption_says_what_became_of_the_promise(visit, whole_address):
    page = visit(address=whole_address)
    chart = page.locator("figure:visible", has_text="first, iso-accuracy:0.5: blur").locator(".plot")
    spots = chart.locator(".spot")
    assert spots.count() == 4 * 3 * 2
    panels = chart.evaluate("plot => plot.viewBox.baseVal.height / 2")
    heights = [float(spots.nth(number).locator("circle").get_attribute("cy")) for number in range(spots.count())]
    assert min(heights) < panels < max(heights)  # both panels can be pointed at
    spots.last.scroll_into_view_if_needed()
    box = spots.last.locator("circle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.locator("#tip").inner_text()
    assert ", blur 5: " in said and "promise " in said
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert said.startswith(page.locator("tbody.lit th .name").inner_text())


def test_tables_of_seeds_and_corruption_sort_and_need_no_javascript(visit, whole_address):
    page = visit(address=whole_address)
    table = page.locator("table:visible", has=page.locator("th", has_text="corruption")).first
    head = table.locator("th", has_text="avg exit t")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    place = head.evaluate("cell => cell.cellIndex")
    cells = figures(table.locator("tbody tr").evaluate_all(f"rows => rows.map(row => row.cells[{place}].textContent)"))
    assert cells == sorted(cells) and len(cells) == 5
    plain = visit(address=whole_address, java_script_enabled=False)
    assert plain.locator("h3:visible", has_text="over seeds").count() == 2
    assert plain.locator("figure:visible", has_text=": noise").count() == 6
    assert plain.locator("table:visible", has=plain.locator("th", has_text="corruption")).count() == 6


@pytest.mark.parametrize("whole", [False, True], ids=["plain", "whole"])
@pytest.mark.parametrize("view", VIEWS)
def test_accessibility_rules_hold(visit, address, whole_address, view, whole):
    page = visit(view, address=whole_address if whole else address, bypass_csp=True)
    page.locator(".row-toggle:visible").first.click()
    page.locator(".about summary").click()
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    told = [(one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]
    assert told == []
