"""Walks through the dashboard in a real browser, as its users take them."""

import re
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.conftest import Site, serve
from tests.dashboard.figures.test_compare import _evaluation as made_evaluation
from tests.dashboard.made_study import write_study
from vlm_core.tracking.writer import RunWriter

pytestmark = pytest.mark.slow
expect.set_options(timeout=20_000)
PAGES = ("/", "/compare", "/study", "/catalogue", "/categorise", "/attention", "/search")
AT_REST = """
    new Promise(shown => requestAnimationFrame(() => requestAnimationFrame(shown))).then(() => Promise.allSettled(
        document.getAnimations().filter(each => each.effect.getTiming().iterations < 9).map(each => each.finished)))
"""
GRIDS_ARE_DRAWN = """
    !document.querySelector('.ag-delay-render, .first-rows') &&
        [...document.querySelectorAll('.ag-header-row, .ag-center-cols-container')].every(part => part.children.length)
"""
# Both widths and both schemes are looked at in full; of their other combinations the colours alone can differ, which
# pages look at in turn.
COLOURS_ALONE = {"runOnly": ["color-contrast"]}
VIEWS = (
    ((1440, "light", {}), (1440, "dark", COLOURS_ALONE), (390, "dark", {})),
    ((390, "dark", {}), (390, "light", COLOURS_ALONE), (1440, "light", {})),  # opens at the width of the page before
)


def _settled(page):
    """Wait until nothing is asked of the server, save for the tick of two seconds, and grids are here."""
    page.wait_for_load_state("networkidle")
    expect(page.locator(".first-rows")).to_have_count(0)
    expect(page.locator("[data-dash-is-loading=true]")).to_have_count(0)
    return page


def _wait_until(page, condition, seconds=20):
    """Wait for an expression; Playwright's own way would have the page evaluate a string, which it forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(50)


def _serious(page, **options):
    """What axe finds, and still finds seconds later: a grid whose width has changed draws its columns anew."""
    end = time.monotonic() + 40
    while (found := _found_by_axe(page, options)) and time.monotonic() < end:
        page.wait_for_timeout(500)
    return found


def _found_by_axe(page, options):
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"][:3]])
        for each in Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def _run_link(page):
    return page.locator("a.cell-link", has_text="clip-lp-ft-0").first


def _write_search(folder):
    """A search of three trials, and its winner."""
    with RunWriter("shop", "search", folder=folder) as leader:
        leader.tags({"kind": "search", "search_name": "mine"})
        leader.params({"model": "clip", "search": "learning_rate"})
        for number in range(3):
            with RunWriter("shop", f"trial {number}", folder=folder, parent=leader.run_id) as trial:
                trial.tags({"kind": "trial"})
                trial.params({"learning_rate": str(10.0 ** -(number + 1))})
                trial.metrics({"best_validation_macro_f1": 0.5 + number / 10, "seconds_per_image": 0.01})
        with RunWriter("shop", "mine-winner", folder=folder, parent=leader.run_id) as winner:
            winner.metrics({"test_macro_f1": 0.6})


def _write_tested(folder, name):
    """A finished run of that name with an evaluation, and its id."""
    with RunWriter("shop", name, folder=folder) as run:
        run.params({"model": "clip", "mode": "probe"})
        run.tags({"fingerprint": "f", "label": "kind", "split": "s", "protocol": "holdout", "leaking": "false"})
        run.evaluation(made_evaluation((0, 0, 1, 0)))
    return run.run_id


def _show(page, width, scheme):
    """The page as it is at this width and in this scheme, once nothing moves or changes its colour any more."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", scheme)
    page.evaluate(AT_REST)


def test_no_page_complains_overflows_or_shuts_anybody_out(site):
    run = re.search(r"run=\w+", site.open("/").locator("a.cell-link").first.get_attribute("href"))[0]
    for number, path in enumerate((*PAGES, f"/run?{run}")):
        page = _settled(site.open(path))
        for width, scheme, options in VIEWS[number % 2]:
            _show(page, width, scheme)
            # A plot that is being drawn may be a pixel too wide for a frame.
            _wait_until(page, f"document.documentElement.scrollWidth <= {width}")
            assert _serious(page, **options) == [], f"{path} at {width} px, {scheme}"


def test_from_the_leaderboard_to_a_comparison_and_to_a_run(site):
    page = _settled(site.open("/"))
    expect(page.locator(".band.leaking .tag")).to_have_text("leaking")
    heading = page.locator(".band .title").first
    expect(heading).to_have_attribute("title", heading.inner_text())  # a narrow screen cuts it off
    boxes = page.locator(".ag-row:not(.ag-full-width-row) input[type=checkbox]")
    boxes.nth(1).check()
    boxes.nth(2).check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.wait_for_url(re.compile(r"/compare\?runs=\w+,\w+"))
    expect(page.get_by_text("Only A correct : only B correct")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("link", name="Compare 2 runs")).to_be_visible()  # the address holds the selection
    expect(boxes.nth(1)).to_be_checked()
    _run_link(page).click()
    page.wait_for_url(re.compile(r"/run\?run=\w+"))
    expect(page).to_have_title(re.compile("clip-lp-ft-0 · Run"))
    expect(page.get_by_role("heading", level=1)).to_have_text("clip-lp-ft-0")


def test_paper_is_white_and_has_every_row_and_the_screen_is_as_before_afterwards(site):
    page = _settled(site.open("/"))
    _show(page, 1440, "dark")
    _wait_until(page, GRIDS_ARE_DRAWN)
    expect(page.locator("#leaderboard-grid .ag-center-cols-container .ag-row")).not_to_have_count(0)
    theme, rows = page.locator("html"), page.locator("table.printed tbody tr")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    expect(theme).to_have_attribute("data-mantine-color-scheme", "light")
    expect(rows).to_have_count(6)  # four runs and two headings
    expect(rows.nth(1).locator("td").nth(2)).to_have_text(re.compile(r"^0\.\d{3}$"))
    expect(page.locator("#shell-links")).to_be_hidden()
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    expect(theme).to_have_attribute("data-mantine-color-scheme", "dark")
    expect(rows).to_have_count(0)


def test_at_1440_pixels_every_column_before_the_categories_is_whole(site):
    page = _settled(site.open("/"))
    _show(page, 1440, "light")
    _wait_until(page, GRIDS_ARE_DRAWN)
    right = page.locator("#leaderboard-grid").evaluate("grid => grid.getBoundingClientRect().right")
    names = ["rank", "name", "score", "family", "mode", "train", "latency", "trained_weights", "weights", "seed"]
    for name in (*names, "status", "started"):
        head = page.locator(f".ag-header-cell[col-id={name}]")
        assert head.evaluate("head => head.getBoundingClientRect().right") <= right, name


def test_bands_stay_together_however_the_grid_is_sorted(site):
    page = _settled(site.open("/"))
    for _ in range(3):
        page.locator(".ag-header-cell[col-id=name]").click()
        rows = page.locator(".ag-center-cols-container .ag-row, .ag-full-width-container .ag-row")
        places = sorted((int(row.get_attribute("row-index")), row.get_attribute("row-id")) for row in rows.all())
        headings = [place for place, name in places if name.startswith("band-")]
        assert headings[0] == 0 and len(headings) == 2


def test_the_address_holds_the_state_and_restores_it(site):
    page = _settled(site.open("/"))
    page.get_by_text("Latency", exact=True).first.click()
    expect(page.locator(".ag-header-cell[col-id=test_set]")).to_have_count(0)
    page.get_by_label("Find").fill("clip")
    expect(page.locator(".ag-header-cell[col-id=test_set]")).to_be_attached()  # as no heading is left
    page.wait_for_url(re.compile(r"cost=latency.*find=clip|find=clip.*cost=latency"))
    page.reload()
    expect(page.get_by_label("Find")).to_have_value("clip")
    expect(page.locator("input[value=latency]")).to_be_checked()


def test_the_keyboard_moves_through_the_epochs(site):
    page = _settled(site.open("/"))
    _run_link(page).click()
    note = page.locator("#run-confusion-note")
    expect(note).to_contain_text("Test split")
    page.get_by_role("slider", name="Epoch").focus()
    page.keyboard.press("ArrowLeft")
    expect(note).to_have_text("Validation after epoch 3")
    page.keyboard.press("ArrowLeft")
    expect(note).to_have_text("Validation after epoch 2")


def test_a_sample_has_a_prediction_that_links_to_its_attention(site):
    run_id = _run_link(_settled(site.open("/"))).get_attribute("href").split("=")[1]
    page = _settled(site.open(f"/categorise?models={run_id}"))
    page.get_by_label("Sample image 4").click()
    page.get_by_alt_text("What the prediction is based on").first.click(timeout=60_000)
    page.wait_for_url(re.compile(r"/attention\?models=\w+&picture=sample"))
    expect(page.get_by_alt_text(re.compile("^Map of "))).to_be_visible(timeout=60_000)
    page.get_by_role("slider", name="Layer (0: all layers").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_text("attention of the class token")).to_be_visible(timeout=60_000)
    expect(page).to_have_url(re.compile(r"layer=1"))
    assert _serious(page) == []


def _tab_to(page, selector, key="Tab"):
    """Press the key until what has the focus is, or is in, what the selector finds."""
    for _ in range(60):
        page.keyboard.press(key)
        if page.evaluate("selector => Boolean(document.activeElement.closest(selector))", selector):
            return
    raise AssertionError(f"{selector} was not reached by {key}")


def test_by_keyboard_alone_runs_are_opened_and_compared_a_figure_saved_and_a_picture_categorised(site):
    page = _settled(site.open("/"))
    _tab_to(page, ".ag-root-wrapper")
    page.keyboard.press("ArrowDown")  # from the header to the heading of the test set
    page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("Space")
        page.keyboard.press("ArrowDown")
    expect(page.get_by_role("link", name="Compare 3 runs")).to_be_visible()
    page.keyboard.press("Tab")
    assert not page.evaluate("Boolean(document.activeElement.closest('.ag-body-viewport'))")  # out of it at once
    _tab_to(page, "a.primary", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/compare\?runs=\w+,\w+,\w+"))
    page = _settled(site.open("/"))
    _tab_to(page, ".ag-root-wrapper")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/run\?run=\w+"))
    _tab_to(_settled(page), ".save-figure")
    with page.expect_download() as saved:
        page.keyboard.press("Enter")
    assert saved.value.suggested_filename.endswith(".svg") and saved.value.path().read_bytes().startswith(b"<svg")
    page = _settled(site.open("/categorise"))
    _tab_to(page, ".sample")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Results")).to_be_visible(timeout=60_000)


def test_a_figure_that_is_asked_for_before_it_is_drawn_is_saved_when_it_is(site):
    link = _run_link(_settled(site.open("/"))).get_attribute("href")
    held = []
    site.page.route(re.compile(r"plotly.*\.js"), lambda route: held.append(route))
    page = site.open(link)
    button = page.locator(".save-figure").first
    expect(button).to_be_attached()
    with page.expect_download() as saved:
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        assert held and not page.locator(".main-svg").count()
        for route in held:
            route.continue_()
    assert saved.value.path().read_bytes().startswith(b"<svg")


def test_a_page_whose_answers_take_long_says_so_and_draws_no_empty_axes(site):
    boxes = _settled(site.open("/")).locator("a.cell-link")
    ids = [boxes.nth(place).get_attribute("href").split("=")[1] for place in (0, 1)]
    held, slow = [], (b"run-curves.figure", b"run-confusion.figure", b"compare-body.children")

    def hold(route):
        if any(name in (route.request.post_data_buffer or b"") for name in slow):
            held.append(route)
        else:
            route.continue_()

    site.page.route(re.compile("_dash-update-component"), hold)
    page = site.open(f"/run?run={ids[0]}")
    expect(page.locator(".annotation-text", has_text="Waiting for the tracking store")).to_have_count(2)
    assert held and not page.locator("#run-curves .xtick, #run-confusion .xtick").count()
    page = site.open(f"/compare?runs={','.join(ids)}")
    expect(page.get_by_text("Comparing the runs …").locator("visible=true")).to_be_visible()
    held.clear()
    site.page.unroute(re.compile("_dash-update-component"))
    page.reload()
    expect(page.get_by_text("Only A correct : only B correct")).to_be_visible()


def test_one_file_that_is_too_large_costs_the_others_nothing_and_back_keeps_what_was_found(site, tmp_path):
    from dashboard.upload_predictions import sample_picture

    files = [tmp_path / name for name in ("b.jpg", "large.jpg", "a.jpg")]
    for place, file in enumerate(files):
        file.write_bytes(sample_picture(place) if place != 1 else b"x" * 10_000_001)
    run_id = _run_link(_settled(site.open("/"))).get_attribute("href").split("=")[1]
    page = _settled(site.open(f"/categorise?models={run_id}"))
    page.locator("#categorise-upload input").set_input_files(files)
    names = page.locator(".file-name")
    expect(names).to_have_text(["b.jpg", "large.jpg", "a.jpg"], timeout=60_000)
    expect(page.get_by_text("The image is larger than 10 MB.")).to_be_visible()
    maps = page.get_by_alt_text("What the prediction is based on")
    expect(maps).to_have_count(2)
    maps.first.click()
    expect(page.get_by_alt_text(re.compile("^Map of "))).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Is the map faithful here?")).to_be_visible(timeout=60_000)
    page.go_back()
    expect(names).to_have_text(["b.jpg", "large.jpg", "a.jpg"])
    expect(maps).to_have_count(2)


def test_an_empty_store_has_a_designed_page_on_which_a_run_in_progress_appears(store, context):
    address = serve(store)
    site = Site(address, context)
    try:
        page = _settled(site.open("/"))
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        page.get_by_label("Light or dark theme").click()
        expect(page.locator("html")).to_have_attribute("data-mantine-color-scheme", "dark")
        with RunWriter("shop", "<img src=x onerror=alert(1)>", folder=store) as run:
            run.params({"model": "git", "mode": "full"})
            run.tags({"fingerprint": "f", "label": "kind", "split": "new", "protocol": "holdout", "leaking": "false"})
            run.metrics({"validation_macro_f1": 0.123}, step=1)
            expect(page.get_by_text("validation 0.123")).to_be_visible()
            expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
            run.metrics({"validation_macro_f1": 0.456}, step=2)
            expect(page.get_by_text("validation 0.456")).to_be_visible()
            run.metrics({"test_macro_f1": 0.789})
        expect(page.get_by_text("0.789")).to_be_visible()
        ids = [_write_tested(store, letter * 250) for letter in "ab"]
        expect(page.get_by_text("0.789")).to_be_visible()
        page.goto(f"{address}/compare?runs={','.join(ids)}")
        expect(page.locator("#compare-gallery")).to_be_attached()
        for width in (1440, 390):  # names of one long word are cut off, and whole where the pointer is
            page.set_viewport_size({"width": width, "height": 900})
            _wait_until(page, f"document.documentElement.scrollWidth <= {width}")
            link = page.locator("a.cell-link", has_text="aaa").first
            link.hover()
            expect(link.locator("xpath=..")).to_have_attribute("title", "a" * 250)
        page.set_viewport_size({"width": 1440, "height": 900})
        write_study(store)
        _write_search(store)
        for path in ("/study", "/search"):  # in the dark by now
            page = _settled(site.open(path))
            expect(page.locator(".ag-row").last).to_be_attached()
            for width in (1440, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.evaluate(AT_REST)
                _wait_until(page, GRIDS_ARE_DRAWN)
                assert _serious(page) == [], f"{path} at {width} px"
        assert site.complaints == []
    finally:
        site.close()
