import re

import pytest

from pipeline_lib.report.charts import dot_rows, legend_above
from pipeline_lib.report.style import draw_panel, series_colour


def test_a_series_without_values_is_left_out_and_the_others_keep_their_colours():
    nothing = [float("nan")] * 2
    values = {"components": [0.9, 0.8], "published": nothing, "clip": [0.4, 0.3]}
    svg = draw_panel(dot_rows(["a", "b"], values, "precision")).svg
    assert "as published" not in svg and series_colour(1) not in svg
    assert "reference CLIP" in svg and series_colour(2) in svg


@pytest.mark.parametrize(("width", "lines"), [(3.0, 2), (1.6, 4)])
def test_a_legend_takes_as_few_lines_as_its_texts_allow(width, lines):
    names = ["from the input", "from the output", "largest effect first", "random order"]

    def draw(axes):
        for name in names:
            axes.plot([0, 1], [0, 1], label=name)
        legend_above(axes, columns=2)

    drawn = re.findall(r' y="([\d.]+)">([^<]+)', draw_panel(draw, width=width).svg)
    assert len({height for height, text in drawn if text in names}) == lines
