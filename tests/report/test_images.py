"""How the filters of the first layer are laid out."""

import numpy as np
import pytest

from rayff.report.images import filter_rows, short


def layout(num_filters: int, num_classes: int) -> list[tuple[str, int]]:
    weight = np.arange(num_filters, dtype=np.float32).reshape(-1, 1, 1, 1)
    rows = filter_rows(weight, [f"class {number}" for number in range(num_classes)])
    shown = np.concatenate([filters.ravel() for _, filters in rows])
    assert (np.diff(shown) > 0).all()
    return [(name, len(filters)) for name, filters in rows]


def test_each_class_has_a_row_where_it_has_a_few_filters() -> None:
    assert layout(12, 3) == [("class 0", 4), ("class 1", 4), ("class 2", 4)]


def test_of_many_a_class_shows_the_first() -> None:
    assert layout(60, 2) == [("class 0", 12), ("class 1", 12)]


@pytest.mark.parametrize(
    ("num_filters", "num_classes", "rows"),
    [(20, 10, [6, 6, 6, 2]), (100, 100, [12] * 8 + [4]), (500, 100, [12] * 12)],
)
def test_many_classes_share_a_grid(num_filters: int, num_classes: int, rows: list[int]) -> None:
    assert layout(num_filters, num_classes) == [("", length) for length in rows]


def test_long_names_are_cut() -> None:
    assert short("truck") == "truck"
    assert short("sweet_pepper_in_a_row") == "sweet_pepper…"
