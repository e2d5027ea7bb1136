"""Table.plot and what a notebook shows of a table."""

from __future__ import annotations

import base64
import re
import subprocess
import sys

import pytest
from tests.report import studies

from align_transformers._errors import SpecError, UnknownNameError
from align_transformers.table import Table


def test_plot_gives_the_figure_of_the_study():
    figure = studies.lens().plot()
    assert [text.get_text() for text in figure.axes[0].texts].count("·Seattle") == 1
    ranks = studies.lens().plot("rank").axes[1]
    assert [text.get_text() for text in ranks.get_yticklabels()] == ["0", "9"]
    assert len(studies.tracing().plot(component="mlp_output").axes) == 3  # a map, its scale, a curve


def test_plot_refuses_as_pictures_do():
    with pytest.raises(UnknownNameError, match="no rows for the component 'mlp'"):
        studies.lens().plot(component="mlp")
    with pytest.raises(SpecError, match="plot: value is a text or None"):
        studies.lens().plot(3)


def test_a_notebook_shows_the_picture_and_few_words():
    shown = studies.attention()._repr_html_()
    [data] = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "study attention_patterns, model toy. 16 rows of layer" in shown
    assert "<table" not in shown


def test_a_table_without_a_picture_shows_some_rows_and_why():
    rows = [{"word": "<b>", "number": n / 3} for n in range(20)]
    shown = Table.from_rows(rows, meta={"study": "mine"})._repr_html_()
    assert shown.count("<tr>") == 9
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "0.3333" in shown
    assert "and 12 more rows" in shown
    assert "No picture: there is no picture of mine" in shown
    assert "0 rows" in Table.from_rows([], meta={})._repr_html_()


def test_without_matplotlib_a_notebook_shows_rows():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['rich'] = None\n"
        "from align_transformers import Table\n"
        "rows = [dict(component='c', layer=n, head=0, recovered=0.5) for n in range(3)]\n"
        "shown = Table.from_rows(rows, meta={'model': 'toy'})._repr_html_()\n"
        "assert '<table>' in shown and \"align-transformers[report]\" in shown, shown\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
