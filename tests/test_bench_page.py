"""The page of a benchmark report as it is written: whole, escaped, closed to the network, and true to its report."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from ingot.benchmarks.harness import page_data, vendor
from ingot.benchmarks.harness.page import page, script_json
from ingot.benchmarks.harness.page_findings import frontier, picture_s
from ingot.benchmarks.harness.record import Report
from ingot.benchmarks.harness.summary import summarize
from ingot.benchmarks.harness.tables import csv

from . import bench_reports

EVIL = "<b>{}</b> & \"quoted\" 'so' </script><script>alert(1)</script><!-- <img src=x onerror=alert(2)>"
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Read(html.parser.HTMLParser):
    """Elements with their attributes, the text of each, and whether every tag that opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{self.elements[index][0]}> is never closed" for index in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.elements[self.open[-1]][0] != tag:
            self.faults.append(f"</{tag}> closes nothing, at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.elements[index][2].append(data)

    def find(self, tag: str, **attributes: str) -> list[tuple[dict[str, str], str]]:
        return [
            (found, "".join(text))
            for name, found, text in self.elements
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


def written(report: Report, folder: Path) -> str:
    return page(report, summarize(report), folder)


def embedded(read: Read, name: str) -> Any:
    return json.loads(read.find("script", id=name)[0][1])


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str, Read]:
    folder = tmp_path_factory.mktemp("grid")
    report = bench_reports.report(folder, bench_reports.grid(), failing=[4])
    text = written(report, folder)
    return report, text, Read(text)


def test_the_html_is_well_formed(grid: tuple[Report, str, Read]) -> None:
    read = grid[2]
    assert read.faults == []
    ids = [found["id"] for _, found, _ in read.elements if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found, _ in read.elements:
        for reference in (
            found.get("aria-labelledby"),
            found.get("href", "x")[1:] if found.get("href", "").startswith("#") else None,
        ):
            assert reference is None or reference in ids


def test_a_page_has_every_part(grid: tuple[Report, str, Read]) -> None:
    read = grid[2]
    sections = [found["id"] for found, _ in read.find("section") if "id" in found]
    assert sections == ["findings", "speed", "parts", "timeline", "scaling", "pictures", "table", "method"]
    assert len(read.find("figure")) == 16
    assert len(read.find("h2")) == len(sections)


def test_the_policy_lets_only_the_pages_own_scripts_run(grid: tuple[Report, str, Read]) -> None:
    read = grid[2]
    policy = read.find("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = [text for found, text in read.find("script") if found.get("type", "text/javascript") == "text/javascript"]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    assert len(scripts) == 4
    assert set(parts["script-src"].split()) == hashes
    assert parts["default-src"] == parts["base-uri"] == parts["form-action"] == "'none'"
    assert set(parts) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert parts["img-src"] == "data:"


def test_nothing_in_the_page_points_outside_but_one_link(grid: tuple[Report, str, Read]) -> None:
    outside = [
        (tag, value)
        for tag, found, _ in grid[2].elements
        for name, value in found.items()
        if name in ("src", "href", "action", "data", "poster", "srcset") and not value.startswith("#")
    ]
    assert outside == [("a", "https://vega.github.io/vega-lite/")]
    style = grid[2].find("style")[0][1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_report_and_its_csv_lie_in_the_page(grid: tuple[Report, str, Read]) -> None:
    report, _, read = grid
    found = embedded(read, "report")
    assert msgspec.convert(found["json"], Report) == report
    assert found["csv"] == csv(summarize(report))


def test_a_page_stays_small(grid: tuple[Report, str, Read]) -> None:
    report, text, read = grid
    pictures = sum(len(address) for address in embedded(read, "data")["pictures"])
    assert len(report.rows) == 70
    assert len(text) - pictures < 2_000_000


def test_names_and_notes_are_text_wherever_they_come(tmp_path: Path) -> None:
    report = bench_reports.report(
        tmp_path, [bench_reports.job(prompts=(EVIL,), scheduler=EVIL)], count=4, name=EVIL, failing=[2]
    )
    rows = [
        msgspec.structs.replace(row, notes=[EVIL], error=row.error and EVIL, versions={EVIL: EVIL})
        for row in report.rows
    ]
    machine = msgspec.structs.replace(report.machine, processor=EVIL, system=EVIL, flags=[EVIL], gpu=EVIL, limit=EVIL)
    noise = msgspec.structs.replace(report.noise, noisy=True, why=EVIL)
    report = msgspec.structs.replace(
        report, rows=rows, machine=machine, noise=noise, title=EVIL, command=EVIL, ingot=EVIL, notes=[EVIL]
    )
    read, plain = (
        Read(written(report, tmp_path)),
        Read(written(bench_reports.report(tmp_path, count=4, failing=[2]), tmp_path)),
    )
    assert read.faults == []
    count = lambda one, tag: len(one.find(tag))  # noqa: E731
    for tag in ("script", "img", "meta", "style", "title"):
        assert count(read, tag) == count(plain, tag), tag
    assert read.find("h1")[0][1] == EVIL
    assert embedded(read, "data")["contestants"][0]["name"] == EVIL.format("diffusers")
    assert msgspec.convert(embedded(read, "report")["json"], Report) == report


def test_json_for_a_script_cannot_end_it() -> None:
    value = {"</script>": ["<!--", "&", "\u2028", float("inf"), float("nan"), 1.5]}
    told = script_json(value)
    assert not set("<>&\u2028") & set(told)
    assert json.loads(told) == {"</script>": ["<!--", "&", "\u2028", None, None, 1.5]}


def test_text_of_the_report_is_no_template(tmp_path: Path) -> None:
    report = msgspec.structs.replace(bench_reports.report(count=1), title="{{data}} {{licences}}")
    assert Read(written(report, tmp_path)).find("h1")[0][1] == "{{data}} {{licences}}"


def test_equal_pictures_are_held_once_and_each_row_finds_its_own(grid: tuple[Report, str, Read]) -> None:
    data = embedded(grid[2], "data")
    assert len(data["pictures"]) == len(set(data["pictures"]))
    first = {data["contestants"][row["contestant"]]["name"]: row["pictures"] for row in data["rows"] if row["job"] == 0}
    assert first["diffusers"] != first["onnx int8-static"]
    assert first["onnx float32"] == []  # it died
    assert all(place is not None for places in first.values() for place in places)


def test_where_room_is_short_everybody_has_a_first_picture(tmp_path: Path) -> None:
    report = bench_reports.report(tmp_path)
    contents = [(tmp_path / row.pictures[0]).read_bytes() for row in report.rows]
    pictures = page_data.Pictures(tmp_path, budget=sum(map(len, set(contents))) + 10)
    places = page_data._places(report, pictures)
    shown = [
        base64.b64decode(pictures.addresses[first or 0].removeprefix("data:image/png;base64,")) for first, _ in places
    ]
    assert shown == contents
    assert [second for _, second in places] == [None] * 10
    assert pictures.left_out == 10


def test_a_picture_outside_the_reports_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "report").mkdir()
    pictures = page_data.Pictures(tmp_path / "report")
    assert pictures.add("../secret.png") is None
    assert pictures.add(str(tmp_path / "secret.png")) is None
    assert pictures.add("missing.png") is None
    assert pictures.addresses == []


@pytest.mark.parametrize(("changed", "told"), [({}, False), ({"noisy": True}, True)])
def test_a_noisy_machine_is_told_first(tmp_path: Path, changed: dict[str, bool], told: bool) -> None:
    text = written(bench_reports.report(count=2, **changed), tmp_path)
    assert ("The machine was noisy." in text) is told
    if told:
        assert text.index("The machine was noisy.") < text.index('id="findings"')


def test_what_is_missing_is_told_before_the_findings(tmp_path: Path) -> None:
    notes = ["no quality: a & b", "diffusers: no pictures: OSError: disk full"]
    text = written(bench_reports.report(count=2, notes=notes), tmp_path)
    read = Read(text)
    (told,) = read.find("div", role="note")
    assert told[0]["aria-labelledby"] == "missing"
    assert told[1] == "Missing from this report" + "".join(notes)
    assert text.index('id="missing"') < text.index('id="findings"')
    assert Read(written(bench_reports.report(count=2), tmp_path)).find("div", role="note") == []


def test_the_frontier_is_who_nobody_beats() -> None:
    lines = summarize(bench_reports.report(count=30))
    found = frontier(lines)

    def decibels(line: Any) -> float:
        return np.inf if line.quality.equal else line.quality.psnr_db

    beaten = lambda one: any(  # noqa: E731
        picture_s(other) <= picture_s(one) and decibels(other) >= decibels(one) and other is not one for other in lines
    )
    assert [line.contestant for line in found] == [
        line.contestant for line in sorted(lines, key=lambda line: picture_s(line) or 0) if not beaten(line)
    ]
    assert len(found) > 3


def test_the_findings_name_the_fastest_and_its_ratio(tmp_path: Path) -> None:
    report = bench_reports.report(count=10)
    lines = {line.contestant: line for line in summarize(report)}
    fastest = min(lines.values(), key=lambda line: picture_s(line) or 0)
    card = Read(written(report, tmp_path)).find("div", **{"class": "card"})[0][1]
    assert fastest.contestant in card
    assert fastest.speedup is not None
    assert f"{fastest.speedup.median:.2f} times as fast as diffusers" in card


def test_the_timeline_is_of_the_median_process_and_may_be_of_the_only_call() -> None:
    runs = [
        bench_reports.run(turn, bench_reports.job(), 0.1 * turn, 1.0, 100.0, np.random.default_rng(0))
        for turn in (3, 1, 2)
    ]
    spans, seconds = page_data._timeline(runs)
    assert seconds == runs[2].call_s[-1]
    assert [span[0] for span in spans[:3]] == ["text_encoder", "unet", "scheduler"]
    only = msgspec.structs.replace(runs[0], call_s=[])
    assert page_data._timeline([only])[1] == only.first_image_s
    assert page_data._timeline([msgspec.structs.replace(only, timeline=[])]) == ([], 0.0)


def test_the_best_batch_is_a_column_where_there_are_batches(grid: tuple[Report, str, Read], tmp_path: Path) -> None:
    key = {"data-key": "best_images_per_minute"}
    assert len(grid[2].find("th", **key)) == 1
    assert Read(written(bench_reports.report(count=2), tmp_path)).find("th", **key) == []


def test_pages_of_next_to_nothing_are_written(tmp_path: Path) -> None:
    nobody = bench_reports.report(count=0)
    for report in (nobody, msgspec.structs.replace(nobody, jobs=[]), bench_reports.report(count=1, rounds=1, quality=False),
                   bench_reports.report(count=2, failing=[0, 1])):  # fmt: skip
        assert Read(written(report, tmp_path)).faults == []


def test_vendored_files_are_those_that_are_listed() -> None:
    listed = json.loads((vendor.VENDOR / "vendor.json").read_text())
    files = {one["file"]: one["sha256"] for one in (*listed["packages"], listed["licences"])}
    assert {path.name for path in vendor.VENDOR.iterdir()} == {*files, "vendor.json"}
    for name, digest in files.items():
        assert hashlib.sha256((vendor.VENDOR / name).read_bytes()).hexdigest() == digest, name
    licences = (vendor.VENDOR / "LICENSES.txt").read_text()
    assert all(one["name"] in licences for one in listed["packages"])
