"""The energy that processors count: RAPL's files, as Linux has them."""

from pathlib import Path

import pytest

from rayff.bench import energy
from rayff.bench.energy import Energy
from tests.helpers.layers import CPU


def write_package(folder: Path, name: str, joules: float) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (folder / name / "max_energy_range_uj").write_text("100000000\n")


def test_packages_are_added_up_across_their_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    write_package(tmp_path, "intel-rapl:0", 10)
    write_package(tmp_path, "intel-rapl:0:0", 5)  # a part of the package
    write_package(tmp_path, "intel-rapl:1", 99)
    found = Energy(CPU)
    before = found.read()
    assert found.since(before) == 0
    write_package(tmp_path, "intel-rapl:0", 12.5)
    write_package(tmp_path, "intel-rapl:0:0", 7)
    write_package(tmp_path, "intel-rapl:1", 1)
    assert found.since(before) == pytest.approx(2.5 + 2)
    assert found.missing is None


def test_a_machine_that_does_not_count_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    found = Energy(CPU)
    assert found.since(found.read()) is None
    assert found.missing == f"the kernel has no RAPL counters ({tmp_path}/intel-rapl:*)"
