"""Readouts in manifests and model descriptions: they are read as they were, or refused."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from rayff.learning.readout import Readouts
from rayff.runs.readout_json import readouts_from_json, readouts_to_json
from tests.runs.readouts import FUSION, READOUTS


def saved(readouts: Readouts | None = READOUTS, **changes: Any) -> Any:
    data = json.loads(json.dumps(readouts_to_json(readouts)))
    return data if data is None else {**data, **changes}


def read(data: Any) -> Readouts | None:
    """Read the readouts of a network of four layers and four classes."""
    return readouts_from_json(data, 4, 4)


def test_all_is_read_as_it_was() -> None:
    found = read(saved())
    assert found is not None
    assert found.window == READOUTS.window
    assert found.temperatures == READOUTS.temperatures
    assert found.fusion is not None
    assert found.fusion.weight.tobytes() == FUSION.weight.tobytes()
    assert found.fusion.bias.tobytes() == FUSION.bias.tobytes()
    assert found.fusion.weight.shape == (4, 16)


@pytest.mark.parametrize("readouts", [None, Readouts(window=(0, 3))])
def test_so_is_what_was_not_fitted(readouts: Readouts | None) -> None:
    assert read(saved(readouts)) == readouts


TEMPERATURES = {"window": [0.5, 1 / 3], "last": 1e-3}
BASE64 = saved()["fusion"]


def fusion_of(**tensors: np.ndarray) -> str:
    return base64.b64encode(save(tensors)).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"window": [1, 4]},
        {"window": [2, 1]},
        {"window": [-1, 1]},
        {"window": [True, 2]},
        {"window": [1.0, 2]},
        {"window": None},
        {"window": [1]},
        {"temperatures": {**TEMPERATURES, "window": [0.5]}},
        {"temperatures": {**TEMPERATURES, "window": [0.5, 0.0]}},
        {"temperatures": {**TEMPERATURES, "window": [0.5, -1.0]}},
        {"temperatures": {**TEMPERATURES, "window": [0.5, float("nan")]}},
        {"temperatures": {**TEMPERATURES, "window": [0.5, 10**400]}},
        {"temperatures": {**TEMPERATURES, "window": [0.5, True]}},
        {"temperatures": {**TEMPERATURES, "window": "ab"}},
        {"temperatures": {**TEMPERATURES, "last": "1"}},
        {"temperatures": {"window": [0.5, 0.5]}},
        {"temperatures": [0.5, 0.5]},
        {"temperatures": 1.0},
        {"fusion": BASE64[:-8]},
        {"fusion": "no base64"},
        {"fusion": "\ud800"},
        {"fusion": {}},
        {"fusion": ""},
        {"fusion": fusion_of(weight=FUSION.weight)},
        {"fusion": fusion_of(weight=FUSION.weight.T.copy(), bias=FUSION.bias)},
        {"fusion": fusion_of(weight=FUSION.weight, bias=FUSION.bias.astype(np.float64))},
        {"fusion": fusion_of(weight=FUSION.weight * np.inf, bias=FUSION.bias)},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_what_no_run_writes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="^[^\n]{10,300}$"):
        read(saved(**changes))


@pytest.mark.parametrize("data", [[], "x", 1, {}, {"window": [0, 1]}])
def test_so_is_what_is_no_object_of_theirs(data: Any) -> None:
    with pytest.raises(ValueError, match="readouts are damaged"):
        read(data)
