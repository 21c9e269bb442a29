"""What all pictures share."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rayff.report.style import DPI, STYLE, WIDTH, render, spread


def test_a_drawing_becomes_a_png_of_its_size() -> None:
    def draw(figure: Figure) -> None:
        figure.subplots().plot([1, 2], [3, 4])

    with Image.open(io.BytesIO(render(draw, 2.0))) as image:
        assert image.format == "PNG"
        assert image.size == (WIDTH * DPI, 2.0 * DPI)
        assert len(np.unique(np.asarray(image))) > 3


def test_the_users_own_settings_are_neither_used_nor_changed() -> None:
    def draw(figure: Figure) -> None:
        figure.subplots().set_title("a $name$ with 猫")

    plain = render(draw, 1.0)
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert render(draw, 1.0) == plain
        assert matplotlib.rcParams["font.size"] == 30
    assert matplotlib.rcParams["font.size"] != STYLE["font.size"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 5.0], [1, 5]),
        ([5.0, 1.0], [5, 1]),
        ([5.0, 5.0], [4.5, 5.5]),
        ([5.0, 5.4, 5.6], [4.333, 5.333, 6.333]),  # all three touch: around their mean
        ([0.0, 0.0], [0, 1]),  # not below the axis
        ([10.0, 10.0, 2.0], [9, 10, 2]),  # nor above it
        ([], []),
    ],
)
def test_labels_that_would_overlap_move_apart(values: list[float], expected: list[float]) -> None:
    found = spread(np.array(values, dtype=float), 1.0, 0.0, 10.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
