"""figure: the picture decodes, has the colours in the right places, and leaves matplotlib as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from PIL import Image

from align_transformers.report import save_figure
from align_transformers.report.colours import LIGHT, shade
from align_transformers.report.figure import figure_of
from align_transformers.report.kinds import picture


def is_colour(pixel, value):
    return all(abs(a - b) <= 3 for a, b in zip(pixel[:3], shade(value, LIGHT), strict=True))


def corner(figure, image, i, j):
    """The pixel a little inside the upper left corner of column i and row j (from the shallowest layer)."""
    axes = figure.axes[0]
    x, y = axes.transData.transform((i - 0.35, j + 0.3)) * 160 / figure.dpi
    return image.getpixel((int(x), image.height - int(y)))


@pytest.mark.parametrize("tokens", [None, [f" w{i}" for i in range(20)]], ids=["5", "20"])
def test_the_colours_stand_where_the_values_are(make_table, tmp_path, tokens):
    def recovered(layer, position):
        return {(0, 0): 0.5, (29, 4): 0.85, (12, 3): -0.6}.get((layer, position), 0.0)

    table = make_table(recovered, tokens=tokens)
    path = save_figure(table, tmp_path / "trace.png")
    with Image.open(path) as opened:
        opened.load()
        image = opened.convert("RGB")
    assert opened.format == "PNG"
    figure = figure_of(picture(table))
    for (i, j), value in {(0, 0): 0.5, (4, 29): 0.85, (3, 12): -0.6, (1, 1): 0.0, (3, 13): 0.0}.items():
        assert is_colour(corner(figure, image, i, j), value), (i, j)
    top, bottom = (figure.axes[0].transData.transform((0, j))[1] for j in (29, 0))
    assert top > bottom  # the deepest layer on top


def test_the_size_follows_the_table(make_table, tmp_path):
    sizes = []
    for count, layers in ((5, 6), (5, 30), (20, 30), (100, 80)):
        table = make_table(tokens=[" w"] * count, layers=layers)
        with Image.open(save_figure(table, tmp_path / f"{count}x{layers}.png")) as image:
            sizes.append(image.size)
    (w0, h0), (w1, h1), (w2, _), (w3, h3) = sizes
    assert w0 == w1 >= 6.6 * 160
    assert h0 < h1
    assert w1 < w2 <= w3 < 4000
    assert h3 < 2600


def test_all_words_are_inside_the_picture(make_table):
    long = [" antidisestablishmentarianism"] * 12
    for table in (make_table(), make_table(tokens=long), make_table(base_answer=" Llanfairpwllgwyngyllgogerychwyrn")):
        figure = figure_of(picture(table))
        figure.draw_without_rendering()
        box = figure.bbox
        for text in figure.findobj(lambda artist: artist.__class__.__name__ == "Text"):
            if text.get_text() and text.get_visible():
                words = text.get_window_extent()
                assert box.x0 <= words.x0, text
                assert words.x1 <= box.x1, text
                assert box.y0 <= words.y0, text
                assert words.y1 <= box.y1, text


def test_the_numbers_and_labels_are_in_their_cells(make_table):
    axes = figure_of(picture(make_table())).axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers[(3, 10)] == "0.99"
    assert numbers[(4, 10)] == "-0.03"
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "The",
        "·capital",
        "·of",
        "·Spain\n→ ·Italy",
        "·is",
    ]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["0", "1"]


def test_the_caption_names_both_answers(make_table):
    words = " ".join(text.get_text() for text in figure_of(picture(make_table())).texts)
    for stated in ("“Madrid”", "“Rome”", "Spain", "Italy", "smollm2-135m", "block_output", "Outlined"):
        assert stated in words


def test_texts_of_the_model_are_not_mathematics(make_table, tmp_path):
    odd = ["$\\frac$", "$x", "日本", "\n", "\x00", "_a^b", "%"]
    table = make_table(tokens=odd, base_answer="$a", source_answer="$\\q$", metric="$\\frac$")
    assert save_figure(table, tmp_path / "odd.png").stat().st_size > 10_000


def test_pyplot_is_not_imported(tmp_path):
    code = (
        "import sys, matplotlib\nbefore = matplotlib.rcParams.copy()\n"
        "from align_transformers.report import save_figure\n"
        "from align_transformers.table import Table\n"
        "row = dict(component='c', layer=0, position=0, token='a', source_token='b', metric=1.0, effect=1.0,"
        " recovered=0.5, change=1.0, fired=1, top_tokens=['y'], top_probabilities=[1.0])\n"
        "meta = dict(model='m', base='a', source='b', base_answer='x', source_answer='y', metric='d', base_value=0,"
        " source_value=1)\n"
        "save_figure(Table.from_rows([row], meta=meta), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\nassert matplotlib.rcParams.copy() == before\n"
        "assert not {'pandas'} & set(sys.modules), 'heavy'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True)


def test_a_failed_write_leaves_the_old_picture(make_table, tmp_path, monkeypatch):
    path = save_figure(make_table(layers=2), tmp_path / "trace.png")
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_figure(make_table(layers=3), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["trace.png"]
