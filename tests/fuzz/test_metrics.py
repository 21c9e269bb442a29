"""metrics.parquet: whatever it holds, it is what a run could have recorded or a mistake."""

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
from tests.fuzz.mutations import broken_bytes, broken_json
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


@cases(300)
@given(rows=broken_json(ROWS), typed=st.booleans())
def test_with_values_changed(path: Path, rows: list[Any], typed: bool) -> None:
    try:  # most trees are no table at all
        schema = records._SCHEMA if typed else None
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, path)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, pa.ArrowException):
        return
    load(path)
