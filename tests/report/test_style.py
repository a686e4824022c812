import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline_lib.report.style import (
    PALETTE,
    SERIES,
    compose,
    css_variables,
    draw_panel,
    series_colour,
)


def example(axes):
    axes.plot([0, 1], [1, 0], marker="o", color=series_colour(0), label="a <b> & $c$")
    axes.fill_between([0, 1], [0, 1], color=series_colour(1))
    axes.legend()


@pytest.fixture(scope="module")
def panel():
    return draw_panel(example, "a title with $ and <")


def test_a_panel_is_well_formed_and_keeps_odd_texts(panel):
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(panel.svg).iter()]
    assert "a <b> & $c$" in texts and "a title with $ and <" in texts


def test_a_panel_holds_no_style_sheet_and_no_date(panel):
    assert "<style" not in panel.svg and "<metadata" not in panel.svg


def test_drawing_twice_gives_the_same(panel):
    assert draw_panel(example, "a title with $ and <") == panel


def test_ids_of_two_drawings_do_not_meet(panel):
    first, second = panel.themed("x-1"), panel.themed("x-2")
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        assert used == own


def test_the_page_colours_by_variable_and_the_file_by_value(panel):
    light = PALETTE["c1"][0]
    assert light in panel.svg and light not in panel.themed("x")
    assert "var(--c1)" in panel.themed("x")
    assert not re.search(r"#[0-9a-f]{6}", panel.themed("x")), "a colour outside the palette"


def test_composed_panels_stay_inside(panel):
    whole = ElementTree.fromstring(compose([panel] * 5, 2))
    assert len(whole.findall("{*}svg")) == 5
    for part in whole.findall("{*}svg"):
        assert float(part.get("x")) + float(part.get("width")) <= float(whole.get("width"))
        assert float(part.get("y")) + float(part.get("height")) <= float(whole.get("height"))


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_on_the_page(theme):
    """Texts reach 4.5 to 1 and drawn series 2.5 (light) and 3 (dark) to 1 on the surface."""
    surface = PALETTE["surface"][theme]
    for role in ("ink", "muted", "accent", "c1", "c4"):
        assert contrast(PALETTE[role][theme], surface) >= 4.5, role
    for role in SERIES:
        assert contrast(PALETTE[role][theme], surface) >= (2.5, 3.0)[theme], role


#: What the cones see with one kind absent: linear RGB to linear RGB (Machado et al., 2009).
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def oklab(colour, seen):
    """A colour as someone sees it, in Ottosson's OKLab, in which distances are about even."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(seen) @ linear, 0, 1)
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    mix = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
           [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(mix) @ np.cbrt(np.array(cones) @ linear)


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_series_can_be_told_apart_without_one_kind_of_cones(deficiency, theme):
    """At 0.08 or more in OKLab, four times what is just noticed."""
    seen = [oklab(PALETTE[role][theme], DEFICIENCIES[deficiency]) for role in SERIES]
    apart = {
        (SERIES[i], SERIES[j]): np.linalg.norm(seen[i] - seen[j])
        for i, j in itertools.combinations(range(len(SERIES)), 2)
    }
    assert min(apart.values()) >= 0.08, min(apart, key=apart.get)


def test_both_themes_define_every_role():
    css = css_variables()
    for role in PALETTE:
        assert css.count(f"--{role}:") == 3
