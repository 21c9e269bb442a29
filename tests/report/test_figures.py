"""The data that figures show, and how they are laid out."""

import dataclasses
import io
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from rayff.engine.evaluation import Evaluation, ReadoutScore
from rayff.learning.calibration import EarlyExit, reliability
from rayff.report.figures_layers import draw_gains, draw_layers
from rayff.report.figures_learning import draw_by_layer, draw_depth, draw_runs, draw_windows
from rayff.report.figures_pipeline import drain, draw_timeline, evaluation_start, fill
from rayff.report.figures_predictions import draw_confusion, draw_filters, filter_layout
from rayff.report.figures_readouts import draw_early_exits, draw_reliability
from rayff.report.style import DPI, WIDTH, render, shorten, spread
from rayff.runs.timeline import Span
from tests.helpers.records import RECORD
from tests.helpers.snapshots import check_snapshot

SECOND = dataclasses.replace(RECORD, epoch=2, layer_loss=[1.25, 0.25], elapsed_s=3.0)
TWELVE = [(f"run {number}", [RECORD, SECOND]) for number in range(12)]
EVALUATION = Evaluation(
    accuracy=50.0,
    layer_accuracy=(50.0,),
    window=(0, 0),
    confusion=np.array([[11, 0], [12, 1]]),
    class_names=("cat", "dog $x$"),
    num_images=24,
)


def epoch(number: int, start_s: float, num_train: int = 20) -> list[Span]:
    """Two stages; a chunk takes each a second, and stage 1 starts a second after stage 0:

    stage 0   t0 t1 ... t19 v0 e0
    stage 1      t0 t1  ... t19 v0 e0
    """
    kinds = ["train"] * num_train + ["valid", "test"]
    return [
        Span(
            epoch=number,
            kind=kind,
            step=place if kind == "train" else 0,
            stage=stage,
            started_s=start_s + place + stage,
            busy_s=1.0,
        )
        for place, kind in enumerate(kinds)
        for stage in range(2)
    ]


SPANS = epoch(1, 100.0) + epoch(3, 200.0)


def test_excerpts_of_the_timeline() -> None:
    assert fill(SPANS) == (100.0, 111.0)
    assert evaluation_start(SPANS) == (115.0, 122.0)  # from stage 0's fifth last training chunk
    assert drain(SPANS) == (212.0, 223.0)
    late = Span(epoch=1, kind="train", step=0, stage=1, started_s=130.0, busy_s=1.0)
    assert fill([late, *(span for span in SPANS if span.stage == 0)]) == (100.0, 131.0)
    short = epoch(1, 0.0, num_train=1)
    assert (fill(short), evaluation_start(short), drain(short)) == ((0, 3), (0, 3), (0, 4))


@pytest.mark.parametrize("change", [{"stage": 1}, {"kind": "train"}, {"busy_s": 0.0}], ids=str)
def test_a_timeline_of_few_spans_is_drawn(change: dict[str, object]) -> None:
    spans = [dataclasses.replace(span, **change) for span in epoch(1, 0.0, num_train=1)[:1]]
    for excerpt in (fill(spans), evaluation_start(spans), drain(spans)):
        draw_timeline(Figure(), spans, excerpt)


SCORE = ReadoutScore(
    accuracy=50.0,
    temperature=2.5,
    reliability=reliability(np.array([0.1, 0.6, 0.9, 0.9]), np.array([0, 1, 1, 0], bool), bins=5),
    uncalibrated=reliability(np.array([0.3, 0.9, 1.0, 1.0]), np.array([0, 1, 1, 0], bool), bins=5),
)
EXITS = {
    "calibrated": [
        EarlyExit(threshold=0.5, mean_layers=1.5, accuracy=0.5),
        EarlyExit(threshold=0.6, mean_layers=2.0, accuracy=0.7),
        EarlyExit(threshold=0.9, mean_layers=3.0, accuracy=0.75),
    ],
    "uncalibrated": [
        EarlyExit(threshold=0.5, mean_layers=1.0, accuracy=0.25),
        EarlyExit(threshold=0.6, mean_layers=1.25, accuracy=0.375),
        EarlyExit(threshold=0.9, mean_layers=2.5, accuracy=0.5),
    ],
}
OTHER = dataclasses.replace(RECORD, layer_test_accuracy=[25.0, 60.0])
DEEPER = dataclasses.replace(RECORD, layer_test_accuracy=[10.0, 20.0, 30.0])
FALLING = dataclasses.replace(
    RECORD, layer_valid_accuracy=[40.0, 55.0, 20.0], sip_accuracy=[[40.0, 60.0, 55.0]]
)

FIGURES = {
    "by-layer": lambda figure: draw_by_layer(figure, [RECORD, SECOND], "layer_loss"),
    "runs": lambda figure: draw_runs(figure, TWELVE, "valid_accuracy", by_time=False),
    "runs-by-time": lambda figure: draw_runs(figure, TWELVE[:1], "valid_accuracy", by_time=True),
    "windows": lambda figure: draw_windows(figure, RECORD),
    "depth": lambda figure: draw_depth(figure, dataclasses.replace(RECORD, sip_first=1)),
    "timeline": lambda figure: draw_timeline(figure, SPANS, (100.5, 102.5)),
    "confusion": lambda figure: draw_confusion(figure, EVALUATION),
    "reliability": lambda figure: draw_reliability(figure, SCORE),
    "early-exit": lambda figure: draw_early_exits(figure, EXITS),
    "layer-gain": lambda figure: draw_gains(figure, FALLING),
    "layers": lambda figure: draw_layers(
        figure, [("seeds", [RECORD, OTHER]), ("deeper", [DEEPER])], "layer_test_accuracy"
    ),
}


PANELS = ("reliability", "layer-gain")
"""Figures of several axes."""


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows(name: str) -> None:
    figure = Figure()
    FIGURES[name](figure)
    shown: list[str] = []
    for axes in figure.axes if name in PANELS else figure.axes[:1]:
        shown += [f"line x {list(map(float, x))} y {list(map(float, y))}"
                  for x, y in (line.get_data() for line in axes.lines)]  # fmt: skip
        for box in axes.patches:
            numbers = (box.get_x(), box.get_y(), box.get_width(), box.get_height())
            shown.append("box x {:g} y {:g} width {:g} height {:g}".format(*numbers))
        for text in axes.texts:
            shown.append("text {} at x {:g} y {:g}".format(text.get_text(), *text.get_position()))
    labels = {text.get_text() for text in figure.findobj(Text)}  # without the numbers of ticks
    shown += sorted(label for label in labels if re.search("[a-z]", label))
    check_snapshot(__file__, f"figure-{name}.txt", "\n".join(shown))


@pytest.mark.parametrize(
    ("num_filters", "num_classes", "shown", "columns"),
    [(12, 3, 12, 4), (60, 2, 24, 12), (20, 10, 20, 6), (100, 100, 100, 12), (500, 100, 144, 12)],
)
def test_filters_have_a_row_per_class_where_they_fit(
    num_filters: int, num_classes: int, shown: int, columns: int
) -> None:
    weight = np.arange(num_filters * 4, dtype=np.float32).reshape(num_filters, 1, 2, 2)
    names = [f"class {number}" for number in range(num_classes)]
    filters, in_row, rows = filter_layout(weight, names)
    assert (len(filters), in_row) == (shown, columns)
    assert rows == (names if num_classes < 10 else [])
    assert (np.diff(filters[:, 0, 0, 0]) > 0).all()
    for channels in (1, 3):
        figure = Figure()
        draw_filters(figure, filters.repeat(channels, axis=1), in_row, rows)
        mosaic = figure.axes[0].images[0].get_array()
        assert mosaic.shape == (3 * -(-shown // columns), 3 * columns, 3)


def test_a_png_has_its_size_and_not_the_users_style() -> None:
    def draw(figure: Figure) -> None:
        figure.subplots().set_title("a $name$ with 猫")

    png = render(draw, 2.0)
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size) == ("PNG", (WIDTH * DPI, 2.0 * DPI))
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert render(draw, 2.0) == png
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0, 1.0], [5, 1]),
        ([5.0, 5.4, 5.6], [4.333, 5.333, 6.333]),  # all three touch: around their mean
        ([0.0, 0.0], [0, 1]),  # not below the axis
        ([10.0, 10.0, 2.0], [9, 10, 2]),  # nor above it
        ([], []),
    ],
)
def test_overlapping_labels_move_apart(values: list[float], expected: list[float]) -> None:
    found = spread(np.array(values, dtype=float), 1.0, 0.0, 10.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


def test_long_names_lose_their_middle() -> None:
    assert shorten("truck", 13) == "truck"
    assert shorten("sweet_pepper_in_a_row", 13) == "sweet_…_a_row"
