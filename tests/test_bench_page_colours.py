"""The colours of the benchmark page: contrast by WCAG AA, and differences that the colour-blind see, in both themes."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from ingot.benchmarks.harness.page import ASSETS


def themes() -> dict[str, dict[str, str]]:
    """The colours of both themes; dark stands twice in the style sheet, for the button and for the preference."""
    blocks = re.findall(r":root([^{]*)\{([^}]*)\}", (ASSETS / "page.css").read_text())
    read = [
        (selector.strip(), dict(re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6})", body))) for selector, body in blocks
    ]
    assert [selector for selector, _ in read] == ["", '[data-theme="dark"]', ':not([data-theme="light"])']
    assert read[1][1] == read[2][1]
    return {"light": read[0][1], "dark": read[1][1]}


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[index : index + 2], 16) for index in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of relative luminances."""
    light, dark = sorted(
        (float(linear(colour) @ (0.2126, 0.7152, 0.0722)) + 0.05 for colour in (one, other)), reverse=True
    )
    return light / dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_keep_the_contrast_of_wcag_aa(theme: str) -> None:
    found = themes()[theme]
    for ground in ("page", "card", "accent-soft"):
        for text in ("ink", "soft", "accent", "bad"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    assert contrast(found["ink"], found["note-soft"]) >= 4.5
    assert contrast(found["bad"], found["bad-soft"]) >= 4.5
    for name in found:
        if name.startswith("series-") or name in ("strong", "role-rest"):
            assert contrast(found[name], found["card"]) >= 3, name  # of graphics


# Linear RGB as those see it who lack a cone: Machado, Oliveira and Fernandes 2009, severity 1
LACKS = {
    "long": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "middle": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_role_of_the_timeline_has_a_colour(theme: str) -> None:
    (listed,) = re.findall(r"const ROLES = \{([^}]*)\}", (ASSETS / "timeline.js").read_text())
    roles = re.findall(r"(\w+):", listed)
    assert {"unet", "unet_shallow", "vae_decoder"} < set(roles)
    assert {f"role-{role.replace('_', '-')}" for role in roles} <= set(themes()[theme])


@pytest.mark.parametrize("lack", list(LACKS))
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_by_the_colour_blind(theme: str, lack: str) -> None:
    """What lies side by side in a bar, at a distance of 15 or more: 2.3 is just noticeable."""
    found, matrix = themes()[theme], np.array(LACKS[lack])
    roles = [f"role-{name}" for name in ("text-encoder", "unet", "unet-shallow", "scheduler", "vae-decoder", "rest")]
    for names, least in (
        ([f"part-{index}" for index in range(4)], 15),
        (roles, 15),
        ([f"series-{index}" for index in range(8)], 20),
    ):
        seen = {name: lab(matrix @ linear(found[name])) for name in names}
        for one, other in itertools.combinations(names, 2):
            assert np.linalg.norm(seen[one] - seen[other]) >= least, (one, other)
