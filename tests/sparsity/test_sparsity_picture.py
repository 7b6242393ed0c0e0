"""The picture of a model's sparsity."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from src.sparsity import picture
from src.sparsity.magnitude import prune_by_pct
from src.sparsity.report import sparsity_report


def many_layers(number):
    model = nn.ModuleDict()
    for side, layers in (("encoder", number), ("decoder", 3)):
        model[side] = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(4, 5), "fc2": nn.Linear(5, 4)}) for _ in range(layers)
        )
    model["projection"] = nn.Linear(4, 4)
    return model


def bars_of(found):
    return [bar for _, bars in found for bar in bars]


def test_layers_that_differ_in_numbers_stand_together():
    model = many_layers(4)
    prune_by_pct(model, [0.05 * n for n in range(15)])
    table = sparsity_report(model, bytes=False)
    found = picture.groups(table)
    titles = ["encoder.*.fc1", "encoder.*.fc2", "decoder.*.fc1", "decoder.*.fc2"]
    assert [title for title, _ in found] == [*titles, "projection"]
    bars = dict(found)["encoder.*.fc2"]
    assert [bar.label for bar in bars] == ["0", "1", "2", "3"]
    assert {bar.kind for bar in bars} == {"fc2"}
    sparsity = table.set_index("layer")["sparsity"]
    expected = [1 - sparsity[f"encoder.{n}.fc2"] for n in range(4)]
    assert [bar.density for bar in bars] == expected
    assert picture.groups(sparsity_report(nn.Linear(2, 2), bytes=False))[0][0] == "Linear"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=30))
def test_columns_hold_every_bar_in_order_and_are_about_equal(lengths):
    bars = iter(picture.Bar(str(n), "fc1", 0.5) for n in range(sum(lengths)))
    found = [(f"group {i}", [next(bars) for _ in range(n)]) for i, n in enumerate(lengths)]
    parts = picture.columns(found)
    assert [bar for part in parts for bar in bars_of(part)] == bars_of(found)
    if sum(lengths) <= picture.ROWS_IN_A_COLUMN:
        assert len(parts) == 1
    else:
        left, right = map(picture._height, parts)
        assert abs(left - right) <= (picture.TOGETHER + 3) * picture.ROW
        assert all(bars for part in parts for _, bars in part)


def test_picture_shows_every_layers_density_and_the_total():
    model = many_layers(20)
    prune_by_pct(model, [0.0, 1.0] + [0.4] * 45)
    table = sparsity_report(model, bytes=False)
    found = picture.groups(table)
    axes = Figure().subplots()
    colours = {"fc1": "#111111", "fc2": "#222222", "projection": "#333333"}
    picture._draw_column(axes, found, colours, 0.61)
    shown = [text.get_text() for text in axes.texts]
    for bar in bars_of(found):
        assert bar.label in shown
    assert shown.count("100%") == shown.count("0%") == 1
    assert shown.count("60.0%") == 44 and shown.count("62.5%") == 1
    widths = [patch.get_width() for patch in axes.patches]
    tracks, bars = widths[::2], widths[1::2]
    assert set(tracks) == {1} and bars == [bar.density for bar in bars_of(found)]
    assert [set(line.get_xdata()) for line in axes.lines] == [{0.61}]


@pytest.mark.parametrize("layers", [1, 30])
def test_picture_grows_so_that_labels_stay_apart(layers, monkeypatch):
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(picture, "Figure", Kept)
    stream = io.BytesIO()
    picture.draw_density(sparsity_report(many_layers(layers), bytes=False), stream)
    assert stream.getvalue().startswith(b"\x89PNG")
    assert len(figures[0].axes) == (2 if layers == 30 else 1)
    for axes in figures[0].axes:
        shares = [text for text in axes.texts if text.get_text().endswith("%")]
        boxes = sorted(text.get_window_extent().extents[1::2].tolist() for text in shares)
        assert all(low[1] <= high[0] for low, high in zip(boxes, boxes[1:]))
    every = [t.get_text() for axes in figures[0].axes for t in axes.texts]
    assert every.count("100%") == 2 * layers + 7
    assert all(axes.yaxis_inverted() for axes in figures[0].axes)  # the first on top


def test_the_title_tells_both_densities(monkeypatch):
    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **how: titles.append(text))
    model = nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 4, bias=False))
    prune_by_pct(model, 0.5)
    picture.draw_density(sparsity_report(model, bytes=False), io.BytesIO())
    assert titles == ["Density: 50.0% of the prunable weights, 87.5% of all"]


def test_percents_are_whole_only_where_they_are():
    shares = [0, 1, 0.5, 1e-6, 1 - 1e-6, 0.0006, 0.99949]
    expected = ["0%", "100%", "50.0%", "<0.1%", ">99.9%", "0.1%", "99.9%"]
    assert [picture.percent(share) for share in shares] == expected
