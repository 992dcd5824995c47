"""The report in a real browser, opened as a file: linked pictures and table, filters, small screens, dark mode."""

import sys

import pytest
from playwright.sync_api import expect, sync_playwright
from programs import CHROMIUM, NO_CHROMIUM

from orchestrator.report.images import write_images
from orchestrator.report.pictures import pictures
from orchestrator.report.sweep import read_sweep
from orchestrator.report.write import write_report
from trainers.errors import SweepError

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
]
TRIALS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pytestconfig):
    """A synthetic sweep with failed, stopped and complete trials, finalists and a study."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "benchmarks"))
        from report_load import write_sweep
    found = tmp_path_factory.mktemp("browser") / "sweep"
    write_sweep(found, TRIALS, seed=3)
    return found


@pytest.fixture(scope="module")
def page_file(folder):
    write_report(folder, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, page_file):
    """A function that opens the report; at the end nothing may have been complained of, nor asked for over the network."""
    contexts, complaints = [], []

    def opened(anchor="", **options):
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(page_file.as_uri() + anchor)
        page.wait_for_selector("#table tbody tr[data-name]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(page, key):
    """Scroll a picture into view and wait until it is drawn."""
    page.locator(f"#{key}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{key} .main-svg")


PLACE = """([key, name]) => {
    const plot = document.querySelector(`#${key} .plot`), { xaxis, yaxis } = plot._fullLayout;
    for (const trace of [...plot.data].reverse()) {
        const i = (trace.customdata || []).findIndex((row) => row && row[0] === name);
        if (i < 0) continue;
        const box = plot.getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(trace.x[i]), box.top + yaxis._offset + yaxis.d2p(trace.y[i])];
    }
}"""


def click_point(page, key, name):
    """Click where the picture shows a run."""
    drawn(page, key)
    place = page.evaluate(PLACE, [key, name])
    page.mouse.move(*place)
    page.wait_for_selector(f"#{key} .hoverlayer .hovertext")
    page.mouse.click(*place)


def column(page, key):
    """What the drawn rows show in one column."""
    place = page.locator("#table thead th").evaluate_all(
        "(cells, key) => cells.findIndex((c) => c.dataset.key === key)", key
    )
    return page.locator(f"#table tbody tr[data-name] td:nth-child({place + 1})").all_text_contents()


def shown(page):
    return int(page.locator("#shown").text_content().split()[0].replace(",", ""))


def test_a_click_on_a_point_selects_its_row_and_says_what_it_is(open_page, folder):
    page = open_page()
    finalist = read_sweep(folder).series.finalists[0]
    click_point(page, "front", finalist.name)
    chosen = page.wait_for_selector("#table tr[aria-selected=true]")
    assert chosen.get_attribute("data-name") == finalist.name
    details = page.locator("#details").inner_text()
    assert finalist.run_id in details
    assert f"({finalist.macs:,})" in details
    assert page.locator("#front .shapelayer path").count() > 0


def test_a_click_on_a_row_marks_its_point(open_page, folder):
    page = open_page()
    drawn(page, "front")
    shapes = "document.querySelector('#front .plot').layout.shapes"
    before = page.evaluate(f"{shapes}.length")
    page.fill("#query", "trial-0000-cut-3")
    page.click("#table tr[data-name='trial-0000-cut-3']")
    mark = page.evaluate(f"{shapes}[{before}]")
    (cut,) = [cut for curve in read_sweep(folder).series.curves for cut in curve if cut.name == "trial-0000-cut-3"]
    assert (mark["xanchor"], mark["yanchor"]) == pytest.approx((100 * cut.macs_ratio, 100 * cut.score), abs=1e-3)
    assert "cut of\ntrial-0000" in page.locator("#details").inner_text()
    assert page.url.endswith("#trial-0000-cut-3")
    page.keyboard.press("Escape")
    page.locator("#scroll").focus()
    page.fill("#query", "")
    page.click("#table tr[data-name] >> nth=2")
    after = page.locator("#table tr[aria-selected=true]").get_attribute("data-name")
    page.locator("#scroll").press("ArrowDown")
    assert page.locator("#table tr[aria-selected=true]").get_attribute("data-name") != after


def test_a_failed_trial_shows_its_error_as_text(open_page, folder):
    (failed, *_) = [record for record in read_sweep(folder).records if record.state == "FAIL"]
    page = open_page(f"#{failed.name}")  # a link to a row
    assert page.locator("#details pre").inner_text() == failed.error
    assert page.locator("#table tr[aria-selected=true]").get_attribute("data-name") == failed.name


def test_filters(open_page, folder):
    sweep = read_sweep(folder)
    page = open_page()
    everything = shown(page)
    assert everything == len(sweep.records) + sum(len(curve) - 1 for curve in sweep.series.curves)
    page.fill("#query", "macs<30 accuracy>=80 regularizer=l1")
    assert 0 < shown(page) < everything
    assert all(float(value) < 30 for value in column(page, "macs"))
    assert all(float(value) >= 80 for value in column(page, "accuracy"))
    assert set(column(page, "regularizer")) == {"l1"}
    page.fill("#query", "")
    page.get_by_label("on the front only").check()
    assert shown(page) == len(sweep.series.front) + len(sweep.series.final_front)
    page.get_by_label("fine-tuned").uncheck()
    assert shown(page) == len(sweep.series.front)
    page.fill("#query", "no such run")
    assert shown(page) == 0
    click_point(page, "front", sweep.series.finalists[0].name)  # what is clicked is shown, whatever the filters
    assert shown(page) == everything


def test_sorting_puts_what_is_not_known_last(open_page):
    page = open_page()
    page.click("#table th[data-key=macs] button")
    assert page.locator("#table th[data-key=macs]").get_attribute("aria-sort") == "descending"
    values = [float(value) for value in column(page, "macs")]
    assert values == sorted(values, reverse=True)
    page.click("#table th[data-key=macs] button")
    values = [float(value) for value in column(page, "macs")]
    assert values == sorted(values)
    page.locator("#scroll").evaluate("(element) => { element.scrollTop = element.scrollHeight; }")
    expect(page.locator("#table tbody tr[data-name]").last).to_contain_text("failed")
    assert column(page, "macs")[-1] == ""


def test_only_rows_in_sight_are_drawn(open_page):
    page = open_page()
    assert page.locator("#table tbody tr[data-name]").count() < 40 < shown(page)


@pytest.mark.parametrize("width", [360, 768, 1920])
def test_no_screen_scrolls_sideways(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    for key in ("front", "hypervolume", "settings", "importances"):
        drawn(page, key)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def luminance(colour):
    """Relative luminance (WCAG 2) of a CSS colour."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_themes(open_page, scheme):
    page = open_page(color_scheme=scheme)
    drawn(page, "front")
    style = "(element, key) => getComputedStyle(element)[key]"
    paper = luminance(page.locator("body").evaluate(style, "backgroundColor"))
    assert (paper < 0.05) == (scheme == "dark")
    places = [("h1", "color"), (".hint >> nth=0", "color"), ("#table td >> nth=1", "color"), ("#front .xtitle", "fill")]
    for place, key in [*places, ("#front .legendtext >> nth=0", "fill")]:
        ink = luminance(page.locator(place).evaluate(style, key))
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= 4.5, (place, contrast)


def test_pictures_follow_a_change_of_theme_and_keep_the_mark(open_page, folder):
    page = open_page(f"#{read_sweep(folder).series.finalists[0].name}", color_scheme="light")
    drawn(page, "front")
    shapes = "document.querySelector('#front .plot').layout.shapes.length"
    background = "(element) => getComputedStyle(element).backgroundColor"
    light, count = page.locator("#front .main-svg").first.evaluate(background), page.evaluate(shapes)
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#front .main-svg").first).not_to_have_css("background-color", light)
    assert page.evaluate(shapes) == count


def test_commands_can_be_copied(open_page):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.locator("article summary").first.click()
    page.locator("article pre button").first.click()
    expect(page.locator("article pre button").first).to_have_text("copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "from trainers import load_model" in copied
    assert not copied.endswith("copy")


def test_pictures_become_files(folder, tmp_path):
    drawn_pictures = {each.key: each.figure for each in pictures(read_sweep(folder), []) if each.key == "hypervolume"}
    (file,) = write_images(drawn_pictures, tmp_path / "png")
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20]) == 2000  # the width in pixels


def test_a_missing_chrome_or_kaleido_is_named(folder, tmp_path, monkeypatch):
    figures = {each.key: each.figure for each in pictures(read_sweep(folder), []) if each.key == "hypervolume"}
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SweepError, match="must find Chrome or Chromium, but there is none"):
        write_images(figures, tmp_path)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    monkeypatch.setitem(sys.modules, "kaleido.errors", None)
    with pytest.raises(SweepError, match=r"pip install 'rankfront\[png\]'"):
        write_images(figures, tmp_path)


def test_it_works_inside_a_sandboxed_frame_as_mlflow_shows_artifacts(browser, page_file, tmp_path):
    (tmp_path / "outer.html").write_text(
        "<!doctype html><iframe sandbox='allow-scripts' width=1200 height=2500></iframe>"
    )
    page = browser.new_page(viewport={"width": 1300, "height": 2600})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "outer.html").as_uri())
    page.locator("iframe").evaluate("(frame, text) => { frame.srcdoc = text; }", page_file.read_text())
    inner = page.frame_locator("iframe")
    inner.locator("#table tbody tr[data-name]").nth(2).click()
    name = inner.locator("#table tr[aria-selected=true]").get_attribute("data-name")
    expect(inner.locator("#details h2")).to_have_text(name)
    expect(inner.locator("#front .main-svg").first).to_be_visible()
    assert errors == []
    page.close()
