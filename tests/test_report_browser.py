"""The report in a real browser: nothing on the console, nothing fetched, every filter heard, every button a file."""

import csv
import io
import time
import xml.etree.ElementTree as ElementTree

import fake_sweeps as fake
import pytest
from browser import CHROMIUM, DRIVER, FRAME, chips, click, column, drawn, errors, fetched, opened, requests, start

from initlab.records import load
from initlab.report import FIGURES, write_report

pytest.importorskip("selenium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and its driver"),
]

RUNS = 300
AXES = ("act", "init", "depth", "seed")
FIGURE_NAMES = tuple(name for name in FIGURES if name != "rates")  # rates: only where a race tuned them
TITLE = '<script>alert("title")</script> & "sweep"'.replace("/", "∕")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    driver = start(downloads=downloads)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser") / TITLE
    fake.write_large(root, RUNS)
    return root


@pytest.fixture(scope="module")
def report(sweep):
    return write_report([sweep]).path


@pytest.fixture
def page(browser, report):
    """The report with all filters open, as it was left otherwise: loading it anew takes most of a test's time."""
    if browser.current_url != report.as_uri():
        return opened(browser, report)
    for button in browser.find_elements("css selector", "#filters .axis button"):
        if button.text == "all":
            click(browser, button)
    return browser


@pytest.fixture
def spent(browser, report):
    """The report for a test that leaves it changed: the next one loads it anew."""
    yield opened(browser, report)
    browser.get("about:blank")


def test_nothing_on_the_console_and_nothing_fetched(page):
    assert errors(page) == []
    assert requests(page) == []
    assert page.execute_script("return document.documentElement.dataset.ready")


def test_a_request_and_an_error_would_be_seen(browser, report, tmp_path):
    text = report.read_text(encoding="utf-8")
    start_of_policy = text.index('<meta http-equiv="Content-Security-Policy"')
    text = text[:start_of_policy] + text[text.index(">", start_of_policy) + 1 :]
    planted = tmp_path / "planted.html"
    planted.write_text(text.replace("<header>", '<header><img src="http://127.0.0.1:9/pixel">', 1), encoding="utf-8")
    opened(browser, planted)
    time.sleep(0.5)
    assert requests(browser) == ["http://127.0.0.1:9/pixel"]
    assert errors(browser)


def test_the_policy_stops_scripts_and_requests(browser, report, tmp_path):
    text = report.read_text(encoding="utf-8")
    planted = tmp_path / "planted.html"
    bad = "<header><script>window.planted = 1</script><img src='http://127.0.0.1:9/pixel'>"
    planted.write_text(text.replace("<header>", bad, 1), encoding="utf-8")
    opened(browser, planted)
    assert browser.execute_script("return window.planted") is None
    assert len(errors(browser)) >= 2
    requests(browser)


def test_every_figure_is_drawn(page):
    found = [section.get_attribute("data-figure") for section in page.find_elements("css selector", "section.figure")]
    assert found == list(FIGURE_NAMES)
    for figure in FIGURE_NAMES:
        assert page.execute_script(f"return document.querySelectorAll('#{figure} .plot svg.main-svg').length") > 0


def test_long_names_of_settings_are_told_apart(browser, tmp_path, monkeypatch):
    config_of = fake.config_of

    def with_settings(cell, steps):
        config = config_of(cell, steps)
        config["optim"] |= {"weight_decay": 0.001 * (cell.seed % 2), "clip_norm": 1.0 + cell.seed // 2 % 2}
        return config

    monkeypatch.setattr(fake, "config_of", with_settings)
    fake.write_sweep(tmp_path, fake.grid(["he_normal"], ["tanh"], [3], range(8)))
    opened(browser, write_report([tmp_path]).path)
    found = browser.find_elements("css selector", ".chip[title*=clip_norm]")
    names, shown = [chip.get_attribute("title") for chip in found], [chip.text.strip() for chip in found]
    assert len(set(names)) == len(set(shown)) == 4
    for figure in ("heat", "curves"):
        titles = browser.execute_script(f"return document.querySelector('#{figure}').textContent")
        assert "clip_norm=1" in titles
        assert "clip_norm=2" in titles


@pytest.mark.parametrize("axis", AXES)
def test_a_filter_changes_every_figure(page, axis):
    before = {figure: drawn(page, figure) for figure in FIGURE_NAMES}
    options = chips(page, axis)
    assert len(options) > 1
    # The first of those that every figure has runs of: glorot_uniform, relu, depth 3, seed 0.
    values = [option.get_attribute("value") for option in options]
    wanted = {"init": "glorot_uniform", "act": "relu", "depth": "3", "seed": "0"}[axis]
    click(page, options[values.index(wanted)])
    unchanged = [figure for figure in FIGURE_NAMES if drawn(page, figure) == before[figure]]
    assert unchanged == []
    click(page, options[values.index(wanted)])
    assert {figure: drawn(page, figure) for figure in FIGURE_NAMES} == before


def test_filters_that_leave_nothing_say_so(page):
    for button in page.find_elements("css selector", '#filters [data-axis="init"] button'):
        if button.text == "none":
            click(page, button)
    assert "0 of" in page.find_element("css selector", "#filters .count").text
    for figure in FIGURE_NAMES:
        assert page.find_element("css selector", f"#{figure} .empty").text
    assert errors(page) == []


def test_every_choice_of_every_figure_draws(spent):
    for select in spent.find_elements("css selector", "section.figure select"):
        for option in select.find_elements("css selector", "option"):
            spent.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
                select,
                option.get_attribute("value"),
            )
        assert errors(spent) == []


@pytest.mark.parametrize(
    ("title", "key"), [("seed", int), ("test accuracy", lambda v: float(v.split()[0])), ("run", str)]
)
def test_sorting_by_a_column(page, title, key):
    for more in page.find_elements("css selector", "#runs-table .more"):
        click(page, more)
    for reverse in (False, True):
        _, head = column(page, "runs", title)
        click(page, head.find_element("css selector", "button"))
        values, head = column(page, "runs", title)
        found = [key(value) for value in values if value]
        assert len(values) == RUNS - 1  # one is damaged
        if key is not str:
            assert found == sorted(found, reverse=reverse)
        assert len(set(found)) > 5
        assert (found[0] > found[-1]) == reverse
        assert head.get_attribute("aria-sort") == ("descending" if reverse else "ascending")
        # Blanks come last whichever way.
        assert all(values[: len(found)])


def test_a_table_is_searched(spent):
    box = spent.find_element("css selector", "#runs-table input[type=search]")
    spent.execute_script("arguments[0].scrollIntoView()", box)
    box.send_keys("failed")
    outcomes, _ = column(spent, "runs", "outcome")
    assert outcomes == ["failed", "failed"]


@pytest.mark.parametrize("figure", FIGURE_NAMES)
def test_the_svg_button_gives_a_figure(page, downloads, figure):
    text = fetched(page, page.find_element("css selector", f"#{figure} button.svg"), downloads, f"{figure}.svg")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert sum(element.tag.endswith("path") for element in root.iter()) > 10
    assert not [element for element in root.iter() if element.tag.endswith("script")]


@pytest.mark.parametrize("figure", FIGURE_NAMES)
def test_the_csv_button_gives_the_numbers(page, downloads, figure):
    text = fetched(page, page.find_element("css selector", f"#{figure} button.csv"), downloads, f"{figure}.csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) > 10
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@")]


def test_the_numbers_of_the_heat_map_are_those_of_the_runs(page, sweep, downloads):
    text = fetched(page, page.find_element("css selector", "#heat button.csv"), downloads, "heat.csv")
    runs = load(sweep)
    done = runs[runs["status"] == "completed"]
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["mean"] and row["scheme"] in set(done["init"])]
    assert len(rows) > 20
    for row in rows:
        own = done[
            (done["init"] == row["scheme"]) & (done["act"] == row["activation"]) & (done["depth"] == int(row["depth"]))
        ]
        assert float(row["mean"]) == pytest.approx(own["test_accuracy"].mean(), rel=1e-4)


@pytest.mark.parametrize("table", ["pairs", "cells", "runs", "failures", "unread"])
def test_tables_give_csv(page, downloads, table):
    text = fetched(page, page.find_element("css selector", f"#{table}-table button.csv"), downloads, f"{table}.csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) > 3
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "@")]


def test_pairs_are_in_points_on_the_page_and_in_the_file(page, downloads):
    text = fetched(page, page.find_element("css selector", "#pairs-table button.csv"), downloads, "pairs.csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    for title in ("difference, points", "from, points", "to, points"):
        shown, _ = column(page, "pairs", title)
        values = [float(row[title]) for row in rows]
        assert max(map(abs, values)) > 10
        assert [float(value) for value in shown] == pytest.approx(values[: len(shown)], abs=0.051)
    # Verdict and interval are one: decided where the interval leaves out 0.
    for row in rows:
        assert (row["is"] == "better") == (float(row["from, points"]) > 0)


def test_hostile_names_are_text(page):
    shown = page.find_element("css selector", "#filters").get_attribute("textContent")
    assert "<img src=x onerror=alert(1)>" in shown
    assert page.find_element("css selector", "h1").text == TITLE
    assert page.find_elements("css selector", "img") == []
    assert page.execute_script("return document.scripts.length") == 3
    runs, _ = column(page, "runs", "init")
    assert any("</script><script>" in name for name in runs)


def test_what_is_not_whole_is_listed_with_its_reason(page):
    names, _ = column(page, "unread", "directory")
    reasons, _ = column(page, "unread", "reason")
    assert "no <run> at all" in names
    assert len(names) >= 6
    assert all(reasons)
    diagnoses, _ = column(page, "failures", "diagnosis")
    assert any("explodes" in text for text in diagnoses)
    assert any("bug" in text for text in diagnoses)


def test_every_table_rounds_a_mean_alike(browser, tmp_path):
    told = fake.write_halves(tmp_path)
    opened(browser, write_report([tmp_path]).path)
    names, _ = column(browser, "cells", "init")
    means, _ = column(browser, "cells", "test accuracy")
    assert dict(zip(names, means, strict=True)) == {name: f"{mean} %" for name, mean in told.items()}
    heat = "const [map] = document.querySelector('#heat .plot').data; return [map.text[0], map.hovertext[0]]"
    shown, hovered = browser.execute_script(heat)
    assert shown == [told[name] for name in sorted(told)]
    assert all(f"test accuracy {told[name]} %" in text for name, text in zip(sorted(told), hovered, strict=True))


@pytest.mark.parametrize(("depth", "range_", "shown"), [
    (2, None, [1, 2, 3]),
    (30, None, [0, 5, 10, 15, 20, 25, 30]),
    (30, [4.2, 6.8], [5, 6]),
])  # fmt: skip
def test_layers_are_counted_in_whole_numbers(browser, tmp_path, depth, range_, shown):
    fake.write_sweep(tmp_path, fake.grid(["he_normal"], ["tanh"], [depth], range(2)), steps=10, records=1)
    opened(browser, write_report([tmp_path]).path)
    if range_:
        zoom = "Plotly.relayout(document.querySelector('#signal .plot'), {'xaxis.range': arguments[0]})"
        browser.execute_script(zoom, range_)
        browser.execute_async_script(FRAME)
    script = "return [...document.querySelectorAll('#signal .xtick text')].map((tick) => tick.textContent)"
    assert [float(tick) for tick in browser.execute_script(script)] == shown
    assert errors(browser) == []


def test_the_forecast_is_drawn_over_the_heat_map(page):
    texts = page.execute_script("return document.querySelector('#heat .plot').data.map((t) => t.text)")
    told = [text for text in texts if isinstance(text, str)]
    assert any(text.startswith("forecast: glorot_uniform trains to depth") for text in told)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_in_light_and_dark(report, width, height, scheme):
    driver = start(width, height, scheme)
    try:
        opened(driver, report)
        assert errors(driver) == []
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        plots = driver.execute_script(
            "return [...document.querySelectorAll('.plot')].map((p) => p._fullLayout && p._fullLayout.paper_bgcolor)"
        )
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
        assert set(plots) == {{"light": "#ffffff", "dark": "#16181b"}[scheme]}
    finally:
        driver.quit()


def test_it_prints_light_and_whole(report):
    driver = start(scheme="dark")
    try:
        opened(driver, report)
        pdf = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
        assert len(pdf) > 100_000
        assert errors(driver) == []
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A race: three rates on two tuning seeds, five fresh seeds at the best one."""
    root = tmp_path_factory.mktemp("race") / "race"
    part = {"tuning": (("race", "tuning"),), "final": (("race", "final"),)}
    cells = [
        fake.Cell(name, "tanh", 3, seed, lr, part["tuning"])
        for name in ("he_normal", "orthogonal")
        for lr in (0.001, 0.01, 0.03)
        for seed in (1000, 1001)
    ]
    cells += [
        fake.Cell(name, "tanh", 3, s, 0.03, part["final"]) for name in ("he_normal", "orthogonal") for s in range(5)
    ]
    fake.write_sweep(root, cells, steps=120, records=3)
    return write_report([root]).path


def test_a_race_shows_verdicts_and_windows(browser, race):
    opened(browser, race)
    assert errors(browser) == []
    verdicts, _ = column(browser, "pairs", "is")
    seeds, _ = column(browser, "pairs", "which seeds")
    assert verdicts in (["smaller than seed noise"], ["cannot tell"])
    assert seeds == ["fresh seeds"]
    decades, _ = column(browser, "windows", "decades")
    assert len(decades) == 2
    before = drawn(browser, "rates")
    click(browser, chips(browser, "init")[0])
    assert drawn(browser, "rates") != before


def test_a_panel_without_a_single_value_is_no_error(browser, tmp_path):
    cells = fake.grid(("normal",), ("relu",), (10, 30), range(2)) + fake.grid(("zeros",), ("tanh",), (3,), range(2))
    fake.write_sweep(tmp_path, cells, steps=50, records=3)
    opened(browser, write_report([tmp_path]).path)
    assert errors(browser) == []
    assert "diverged" in drawn(browser, "heat")


def test_only_the_best_rate_until_asked_otherwise(browser, race):
    opened(browser, race)
    assert "10 of 22" in browser.find_element("css selector", "#filters .count").text
    click(browser, browser.find_element("css selector", "#best-only"))
    assert "22 of 22" in browser.find_element("css selector", "#filters .count").text


def test_300_runs_stay_below_12_megabytes(report):
    assert report.stat().st_size < 12e6
