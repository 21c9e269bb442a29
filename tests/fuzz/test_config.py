"""config.json: it is read as the options of a run, or refused."""

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff import TrainConfig
from rayff.data import loading
from rayff.data.digits import read_digits
from rayff.data.images import ImageFormat
from rayff.engine.preparation import prepare
from rayff.runs.run_directory import read_config
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import VALUES, broken_bytes, broken_json

RUN = TrainConfig(
    arch="resnet", width=10, epochs=3, lr=0.1, cuts=(5, 9), replicas="1,2,1", kernels="unfold/conv"
)
CONFIG = RUN.to_dict()


def check(folder: Path, content: bytes) -> None:
    path = folder / "config.json"
    path.write_bytes(content)
    run = read_or_refused(lambda: read_config(path), folder)
    if run is not None:  # what is read can be written and read again
        assert TrainConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
        read_or_refused(lambda: prepare(run, resume=False), folder)


@pytest.fixture(autouse=True)
def _digits_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_digits", _digits)


@pytest.fixture(autouse=True, scope="module")
def _modules_are_imported() -> None:
    """The first preparation imports what all others use, and so takes longer."""
    prepare(TrainConfig(width=10), resume=False)


@functools.cache
def _digits(form: ImageFormat) -> object:
    return read_digits(form)


@cases(400)
@given(config=broken_json(CONFIG))
def test_with_values_changed(tmp_path: Path, config: object) -> None:
    check(tmp_path, json.dumps(config).encode())


@cases(500)
@given(name=st.sampled_from(sorted(CONFIG)), value=VALUES)
def test_with_one_option_of_any_kind(tmp_path: Path, name: str, value: object) -> None:
    check(tmp_path, json.dumps({name: value}).encode())


@cases(200)
@given(content=broken_bytes(json.dumps(CONFIG).encode()))
def test_with_bytes_changed(tmp_path: Path, content: bytes) -> None:
    check(tmp_path, content)
