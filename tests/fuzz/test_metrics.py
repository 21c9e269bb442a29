"""metrics.parquet: it is read as a run could have written it, or refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.runs import metrics as records
from rayff.runs.metrics import EpochRecord, read_metrics
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes, broken_json, replaced
from tests.runs.test_metrics import record, write

ROWS = [dataclasses.asdict(record(epoch)) for epoch in (1, 2, 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "run", 1, 2, 3)
    return tmp_path / "run" / "metrics.parquet"


def load(path: Path) -> list[EpochRecord] | None:
    rows = read_or_refused(lambda: read_metrics(path), path.parent)
    for number, row in enumerate(rows or []):
        assert row.epoch > number
        assert 0 <= row.sip_first <= row.sip_last < len(row.layer_loss)
        assert math.isfinite(sum(row.layer_loss) + row.train_loss)
    return rows


def test_the_cases_begin_with_three_epochs(path: Path) -> None:
    assert load(path) == [EpochRecord(**row) for row in ROWS]


@cases(400)
@given(data=st.data())
def test_with_bytes_changed(path: Path, data: st.DataObject) -> None:
    whole = path.parent.parent / "whole.parquet"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_bytes(data.draw(broken_bytes(whole.read_bytes())))
    load(path)


def write_rows(path: Path, rows: Any, *, typed: bool) -> bool:
    """Write the rows, with the columns of a run or with their own; most trees are no table."""
    try:
        table = pa.Table.from_pylist(rows, schema=records._SCHEMA if typed else None)
        pq.write_table(table, path)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, pa.ArrowException):
        return False
    return True


@pytest.mark.slow
def test_with_each_value_of_another_kind(path: Path) -> None:
    for rows in replaced(ROWS):
        for typed in (False, True):
            if write_rows(path, rows, typed=typed):
                load(path)


@cases(200)
@given(rows=broken_json(ROWS), typed=st.booleans())
def test_with_several_values_changed(path: Path, rows: list[Any], typed: bool) -> None:
    if write_rows(path, rows, typed=typed):
        load(path)
