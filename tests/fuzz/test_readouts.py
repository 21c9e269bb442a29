"""Readouts of an attacker's in a manifest: they are read as a run could have written them."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.runs.readout_json import readouts_from_json, readouts_to_json
from tests.fuzz.checks import cases
from tests.fuzz.mutations import broken_json, replaced
from tests.runs.readouts import FUSION, READOUTS

WHOLE = json.loads(json.dumps(readouts_to_json(READOUTS)))


def check(data: Any) -> bool:
    """Read the readouts of four layers and four classes; return whether they were not refused."""
    try:
        found = readouts_from_json(data, 4, 4)
    except ValueError:
        return False
    if found is None:
        assert data is None
        return True
    first, last = found.window
    assert 0 <= first <= last < 4
    if found.temperatures is not None:
        assert len(found.temperatures.window) == last - first + 1
        assert all(1e-6 <= t <= 1e6 for t in (*found.temperatures.window, found.temperatures.last))
    if found.fusion is not None:
        assert (found.fusion.weight.shape, found.fusion.bias.shape) == ((4, 16), (4,))
        assert np.isfinite(found.fusion.weight).all()
    return True


def test_the_cases_begin_with_readouts_that_are_read() -> None:
    assert check(WHOLE)
    found = readouts_from_json(WHOLE, 4, 4)
    assert found is not None
    assert found.fusion is not None
    assert found.fusion.bias.tobytes() == FUSION.bias.tobytes()


def test_with_each_value_of_another_kind() -> None:
    assert not all([check(data) for data in replaced(WHOLE)])  # noqa: C419 - all are tried


@cases(400)
@given(data=broken_json(WHOLE))
def test_with_several_values_changed(data: Any) -> None:
    check(data)


@cases(200)
@given(text=st.text(max_size=200) | st.binary(max_size=300))
def test_with_another_fusion(text: str | bytes) -> None:
    fusion = text if isinstance(text, str) else base64.b64encode(text).decode()
    assert not check({**WHOLE, "fusion": fusion})


@pytest.mark.parametrize("claim", [2**20, 2**40, 2**62])
def test_a_fusion_that_claims_to_be_huge_takes_no_memory(claim: int) -> None:
    header = {"weight": {"dtype": "F32", "shape": [claim], "data_offsets": [0, 4 * claim]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(64)
    assert not check({**WHOLE, "fusion": base64.b64encode(content).decode()})
