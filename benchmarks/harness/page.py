"""A report as one HTML file that opens from disk and fetches nothing: figures, plots, pictures, and how they came about.

The text stands in the HTML itself (`page_text`); plots, filters and the comparison of pictures are drawn by the scripts in
`assets/`, from the JSON that `page_data` makes. Everything that came from the report is escaped on its way in, and the
page's security policy lets only its own scripts run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from . import page_text as text
from .page_data import page_data
from .page_findings import findings
from .page_method import method
from .record import Report
from .summary import Line
from .tables import csv

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("state", "draw", "labels", "bars", "scatter", "timeline", "scaling", "pictures", "table", "main")
CHARTS = {
    "speed": "",
    "cold": "Cold start to the first picture, in its parts",
    "picture": "Time a picture",
    "step": "Time a step",
    "host": "Host time a step, outside the denoiser",
    "memory": "Peak resident memory",
    "gpu": "Peak GPU memory",
    "size": "Size of the opened files",
    "installed": "Installed size of the packages",
    "energy": "Energy a picture",
    "timeline": "",
    "scale-size": "Time a picture over its size",
    "scale-memory": "Peak memory over the picture's size",
    "scale-batch": "Time a picture over the batch",
    "scale-threads": "Time a picture over the threads",
    "scale-steps": "Time a picture over the steps",
}


def page(report: Report, lines: Sequence[Line], folder: Path) -> str:
    """The HTML of a report. `lines` are `summarize(report)`; `folder` is the report's, with the pictures that its rows name
    (missing ones are left out)."""
    data, left_out = page_data(report, lines, Path(folder))
    scripts = _scripts()
    parts = {
        "policy": _policy(scripts),
        "generator": text.escape(f"Ingot {report.ingot}"),
        "title": text.escape(report.title or "Benchmark report"),
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "heading": text.heading(report),
        "banner": text.banner(report),
        "missing": text.missing(report),
        "findings": findings(report, lines),
        "pictures-note": text.pictures_note(left_out),
        "table": text.table(report, lines),
        "method": method(report),
        "licences": text.escape((ASSETS / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")),
        "data": script_json(data),
        "report": script_json({"csv": csv(lines), "json": msgspec.to_builtins(report)}),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        **{f"chart-{name}": _figure(name, title) for name, title in CHARTS.items()},
    }
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    # in one pass: what was put in is never read for more places
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda found: parts[found[1]], template)


def script_json(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element, open a comment, or be no JSON (NaN, infinity)."""
    told = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        told = told.replace(sign, f"\\u{ord(sign):04x}")
    return told


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _scripts() -> list[str]:
    """The libraries as they were published, each whole, and ours as one function."""
    vendor = ASSETS / "vendor"
    ours = "\n".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    libraries = [(vendor / f"{name}.min.js").read_text(encoding="utf-8") for name in ("vega", "vega-lite")]
    return [*libraries, _interpreter(vendor), f'(() => {{\n"use strict";\n{ours}\n}})();']


def _interpreter(vendor: Path) -> str:
    """Vega's interpreter of expressions, published as a module only: its import and export become those of a plain script."""
    module = (vendor / "vega-interpreter.js").read_text(encoding="utf-8")
    module, imports = re.subn(r"^import \{([^}]*)\} from 'vega-util';$", r"const {\1} = vega;", module, flags=re.M)
    module, exports = re.subn(
        r"^export \{ expression as expressionInterpreter \};$",
        "globalThis.expressionInterpreter = expression;",
        module,
        flags=re.M,
    )
    assert imports == exports == 1, "vega-interpreter.js is not in the form that the vendored version has"
    return f"(() => {{\n{re.sub(r'//# sourceMappingURL=.*', '', module)}\n}})();"


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts run, by their hashes; pictures lie in the page; nothing is fetched, framed, sent or evaluated."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _figure(name: str, title: str) -> str:
    shown = f"<h3>{text.escape(title)}</h3>" if title else '<h3 class="hidden">Plot</h3>'
    return (
        f'<figure class="chart" id="chart-{name}"><figcaption>{shown}<p class="told"></p></figcaption><div class="plot"></div>'
        '<details><summary>The data of this plot</summary><div class="scroll" tabindex="0"></div></details></figure>'
    )
