"""The page of a benchmark report in headless Chromium without network: it draws, filters, compares, and keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ingot.benchmarks.harness.page import page
from ingot.benchmarks.harness.summary import summarize

from . import bench_reports
from .browser import Browser

LONG = "a rather long name & <i>markup</i>, {} with cache_interval=3, guidance_end=0.6 and whatever else was asked"
NOTES = [f"no quality: there is no file {'/a-folder-with-a-long-name' * 9}", "diffusers: no pictures: the disk is full"]
PAGES = {
    "ten": {},
    "grid": {"jobs": bench_reports.grid(), "failing": [4]},
    "forty": {"count": 40, "failing": [3, 17]},
    "long": {"count": 9, "name": LONG, "notes": NOTES},
    "one": {"count": 1, "quality": False, "rounds": 1},
    "failed": {"count": 3, "failing": [0, 1, 2], "noisy": True, "notes": NOTES},
    "nobody": {"count": 0},
}
DRAWN = {"ten": 9, "grid": 14, "forty": 9, "long": 9, "one": 9, "failed": 0, "nobody": 0}
ROWS = "[...document.querySelectorAll('#figures tbody tr')].filter(row => !row.hidden)"
NAMES = ROWS + ".map(row => row.cells[0].firstChild.textContent.trim())"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    for name, options in PAGES.items():
        report = bench_reports.report(root / name, **options)
        (root / name).mkdir(exist_ok=True)
        (root / name / "report.html").write_text(page(report, summarize(report), root / name))
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        opened.size(1400)
        yield opened


def show(browser: Browser, folder: Path, name: str, fragment: str = "", width: int = 1400, dark: bool = False) -> None:
    browser.size(width, dark=dark)
    browser.open(folder / name / "report.html", fragment)


@pytest.mark.parametrize("name", list(PAGES))
def test_it_draws_every_plot_and_fetches_nothing(browser: Browser, folder: Path, name: str) -> None:
    show(browser, folder, name)
    assert browser.messages == []
    assert [one for one in browser.requests if not one.startswith("data:image/png")] == [
        (folder / name / "report.html").as_uri()
    ]
    assert browser.evaluate("performance.getEntriesByType('resource').map(one => one.name)") == []
    assert browser.evaluate("document.getElementById('broken').hidden")
    assert int(browser.evaluate("document.documentElement.dataset.charts")) == DRAWN[name]
    drawn = "[...document.querySelectorAll('.chart[data-state=drawn]')]"
    assert browser.evaluate(drawn + ".every(one => one.querySelector('svg .mark-rect path, svg .mark-symbol path'))")


def test_every_drawn_plot_has_a_text_and_its_data(browser: Browser, folder: Path) -> None:
    show(browser, folder, "grid")
    found = browser.evaluate(
        "[...document.querySelectorAll('.chart[data-state=drawn]')].map(one => [one.querySelector('.plot').getAttribute('role'),"
        "one.querySelector('.plot').getAttribute('aria-label').length, one.querySelectorAll('details tbody tr').length])"
    )
    assert len(found) == 14
    assert all(role == "img" and length > 60 and rows == 9 for role, length, rows in found)


@pytest.mark.parametrize(("width", "dark"), [(360, True), (768, False)])
@pytest.mark.parametrize("name", ["grid", "long"])
def test_it_never_scrolls_sideways(browser: Browser, folder: Path, name: str, width: int, dark: bool) -> None:
    show(browser, folder, name, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    beyond = (
        "[...document.querySelectorAll('svg')].filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert browser.evaluate(beyond) == 0
    # the table is wider, and scrolls in its box
    assert browser.evaluate(
        "document.querySelector('#table .scroll').scrollWidth > document.querySelector('#table .scroll').clientWidth"
    )


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1400, False)])
def test_what_is_missing_is_read_and_heard_first(browser: Browser, folder: Path, width: int, dark: bool) -> None:
    show(browser, folder, "failed", width=width, dark=dark)
    place = "document.querySelector('[aria-labelledby=missing]')"
    assert browser.evaluate(f"[...{place}.querySelectorAll('li')].map(one => one.textContent)") == NOTES
    left, right, bottom = browser.evaluate(
        f"(box => [box.left, box.right, box.bottom])({place}.getBoundingClientRect())"
    )
    assert 0 < left < right < width
    assert 0 < bottom < browser.evaluate("document.getElementById('findings').getBoundingClientRect().top")
    heard = [
        node["name"]["value"]
        for node in browser.send("Accessibility.getFullAXTree")["nodes"]
        if not node["ignored"] and node["role"]["value"] == "note" and "name" in node
    ]
    assert "Missing from this report" in heard


@pytest.mark.parametrize(
    ("fragment", "names"),
    [
        ("#engine=onnx", ["onnx float32", "onnx int8-static"]),
        ("#scheme=bfloat16", ["torch bfloat16"]),
        ("#find=deepcache", ["openvino int8-static, DeepCache 3"]),
        ("#find=openvino%20int8&sort=-picture_s", ["openvino int8-static", "openvino int8-static, DeepCache 3"]),
        ("#find=own%20first%20latents", ["openvino-genai"]),
        ("#find=nobody", []),
    ],
)
def test_the_address_filters_and_sorts(browser: Browser, folder: Path, fragment: str, names: list[str]) -> None:
    show(browser, folder, "ten", fragment)
    assert browser.evaluate(NAMES) == names
    assert browser.evaluate("document.getElementById('count').textContent").startswith(f"{len(names)} of 10")
    assert browser.evaluate("document.getElementById('nothing').hidden") is bool(names)
    drawn = browser.evaluate("document.querySelectorAll('#chart-picture details tbody tr').length")
    assert drawn == len(names)
    assert browser.messages == []


def test_the_filters_write_the_address_and_reset(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten")
    browser.evaluate(
        "(box => { box.value = 'openvino'; box.dispatchEvent(new Event('change')) })(document.getElementById('engine'))"
    )
    browser.evaluate(
        "(box => { box.value = 'deep'; box.dispatchEvent(new Event('input')) })(document.getElementById('find'))"
    )
    assert browser.evaluate("location.hash") == "#find=deep&engine=openvino"
    assert browser.evaluate(NAMES) == ["openvino int8-static, DeepCache 3"]
    browser.evaluate("document.querySelector('#filters [type=reset]').click()")
    assert browser.evaluate("location.hash") == ""
    assert len(browser.evaluate(NAMES)) == 10
    assert browser.evaluate("document.getElementById('find').value") == ""


def test_the_job_chooses_findings_plots_and_rows(browser: Browser, folder: Path) -> None:
    show(browser, folder, "grid", "#job=4")
    assert browser.evaluate(
        "[...document.querySelectorAll('[data-job]:not([hidden])')].map(one => one.dataset.job)"
    ) == ["4"]
    assert "batch 4" in browser.evaluate("document.querySelector('[data-job]:not([hidden]) .job').textContent")
    assert len(browser.evaluate(NAMES)) == 10
    browser.evaluate("document.getElementById('all').click()")
    assert len(browser.evaluate(NAMES)) == 70
    assert browser.evaluate("location.hash") == "#job=4&all=1"


def test_sorting_is_by_number_with_the_missing_last(browser: Browser, folder: Path) -> None:
    for sign, order in (("", 1), ("-", -1)):
        show(browser, folder, "forty", f"#sort={sign}picture_s")
        column = "document.querySelector('[data-key=picture_s]').cellIndex"
        values = browser.evaluate(f"{ROWS}.map(row => row.cells[{column}].dataset.value)")
        assert values[-2:] == ["", ""]
        numbers = [float(value) for value in values[:-2]]
        assert numbers == sorted(numbers)[::order]
        assert browser.evaluate("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == (
            "ascending" if order > 0 else "descending"
        )


def test_it_is_used_by_keyboard_alone(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten")
    told = "(one => one.id || one.closest('[data-key]')?.dataset.key || one.className || one.name || one.tagName)(document.activeElement)"
    # a radio button lies unseen over the text that shows its focus
    marked = "(one => one.type === 'radio' ? one.nextElementSibling : one)(document.activeElement)"
    outline = (
        f"(style => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2)(getComputedStyle({marked}))"
    )
    seen: list[str] = []
    while "notes" not in seen and len(seen) < 120:
        browser.press("Tab", 9)
        seen.append(browser.evaluate(told))
        assert browser.evaluate(outline), f"no visible focus on {seen[-1]}"
        if seen[-1] == "picture_s":
            browser.press("Enter", 13, "\r")
            assert browser.evaluate("location.hash") == "#sort=picture_s"
    assert seen[0] == "skip"
    for name in (
        "theme",
        "find",
        "engine",
        "scheme",
        "across",
        "up",
        "share",
        "chosen",
        "against",
        "thumb",
        "save-csv",
        "picture_s",
        "notes",
    ):
        assert name in seen, name
    unlabelled = "[...document.querySelectorAll('input, select, button')].filter(one => !one.labels?.length && !one.textContent.trim()"
    assert browser.evaluate(unlabelled + " && !one.getAttribute('aria-label')).length") == 0


def test_the_difference_is_that_of_the_pictures(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten", "#chosen=onnx+int8-static&gain=16&picture=1")
    browser.wait("document.querySelector('#compare canvas').dataset.told")
    one, other = (
        np.asarray(Image.open(folder / "ten" / "pictures" / f"c{index}-0-1.png"), np.int64) for index in (0, 5)
    )
    apart = np.abs(one - other)
    painted = browser.evaluate(
        "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])(document.querySelector('#compare canvas'))"
    )
    assert np.array_equal(np.reshape(painted, (64, 64, 4))[..., :3], np.minimum(apart * 16, 255))
    told = browser.evaluate("document.querySelector('#compare canvas').dataset.told")
    assert told == f"at most {apart.max()} of 255, in {100 * (apart.max(axis=2) > 0).mean():.0f} % of the pixels"


def test_equal_pictures_say_so_and_a_picture_below_is_chosen_by_a_click(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten")
    browser.evaluate("document.querySelector('[data-name=\"onnx float32\"]').click()")
    browser.wait("document.querySelector('#compare canvas').dataset.told")
    assert browser.evaluate("document.querySelector('#compare canvas').dataset.told") == "none, the pictures are equal"
    browser.evaluate("document.querySelector('[name=view][value=swipe]').click()")
    assert browser.evaluate("document.querySelectorAll('.swipe img').length") == 2
    browser.evaluate(
        "(one => { one.value = 20; one.dispatchEvent(new Event('input')) })(document.querySelector('.swiped input'))"
    )
    assert "20%" in browser.evaluate("getComputedStyle(document.querySelector('.swipe .over')).clipPath")
    assert browser.messages == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_keeps_its_contrast(browser: Browser, folder: Path, dark: bool) -> None:
    """WCAG AA of every piece of text on what it really lies on, plots included: 4.5, or 3 where it is large."""
    weak = (Path(__file__).parent / "page_contrast.js").read_text()
    for name in ("failed", "ten"):
        show(browser, folder, name, "#sort=picture_s", dark=dark)
        assert browser.evaluate(weak) == []
    browser.evaluate("document.documentElement.style.setProperty('--soft', '#808080')")
    assert len(browser.evaluate(weak)) >= 1


def test_the_button_changes_the_theme_and_redraws(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten")
    text = "document.querySelector('#chart-picture .mark-text text').getAttribute('fill')"
    colours = f"[getComputedStyle(document.body).backgroundColor, {text}]"
    light = browser.evaluate(colours)
    browser.evaluate("document.getElementById('theme').click()")
    browser.wait(
        "document.querySelector('#chart-picture[data-state=drawn] .mark-text text')?.getAttribute('fill') !== '"
        + light[1]
        + "'"
    )
    dark = browser.evaluate(colours)
    assert dark[0] != light[0]
    assert browser.evaluate("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    browser.evaluate("document.getElementById('theme').click()")
    browser.evaluate("localStorage.clear()")


def test_what_is_saved_is_the_report(browser: Browser, folder: Path) -> None:
    show(browser, folder, "ten")
    browser.evaluate("URL.createObjectURL = blob => { window.kept = blob.text(); return '#' }")
    browser.evaluate("document.getElementById('save-json').click()")
    saved = json.loads(browser.evaluate("window.kept"))
    assert [row["contestant"] for row in saved["rows"]] == [one[0] for one in bench_reports.KNOWN]
    browser.evaluate("document.getElementById('save-csv').click()")
    assert browser.evaluate("window.kept").startswith("contestant,")


def test_without_scripts_findings_and_table_are_there(browser: Browser, folder: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=(folder / "ten" / "report.html").as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('.card')")
        shown = "(id => document.getElementById(id).getBoundingClientRect().height)"
        assert browser.evaluate(f"{shown}('findings')") > 100
        assert browser.evaluate(f"{shown}('figures')") > 200
        assert browser.evaluate("document.querySelector('#filters').getBoundingClientRect().height") == 0
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_a_script_that_is_not_the_pages_own_never_runs(browser: Browser, folder: Path) -> None:
    text = (folder / "one" / "report.html").read_text()
    spoilt = folder / "one" / "spoilt.html"
    spoilt.write_text(
        text.replace("<main>", "<main><script>window.strange = 1</script><img src='https://example.com/x.png'>")
    )
    browser.open(spoilt)
    assert browser.evaluate("window.strange === undefined")
    assert len(browser.messages) == 2
    assert all("Content Security Policy" in one for one in browser.messages)


def test_a_plot_that_fails_is_told(browser: Browser, folder: Path) -> None:
    """What the other tests rely on: that a failure shows."""
    text = (folder / "one" / "report.html").read_text()
    spoilt = folder / "one" / "spoilt.html"
    spoilt.write_text(text.replace('"roles":', '"timeline":[null],"roles":', 1))
    browser.open(spoilt)
    assert not browser.evaluate("document.getElementById('broken').hidden")
    assert browser.evaluate("document.getElementById('chart-timeline').dataset.state") == "failed"
    assert int(browser.evaluate("document.documentElement.dataset.charts")) == 8
