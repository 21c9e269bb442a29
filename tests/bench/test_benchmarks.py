"""The benchmarks on networks so small that they take seconds."""

import json
from pathlib import Path

import pytest

from rayff.bench import backprop, memory, scaling, step
from tests.helpers.ray_instance import local_ray


def test_the_phases_of_a_layer_are_its_time(tmp_path: Path):
    file = tmp_path / "figures.json"
    code = step.main(
        ["--arch", "tinycnn", "--batch-size", "1", "--repeats", "1", "--save", str(file)]
    )
    assert code == 0
    figures = json.loads(file.read_text())
    assert [row["layer"] for row in figures["layers"]] == [0, 1, 2, 3]
    for row in figures["layers"]:
        phases = sum(
            row[f"{name}_s"] for name in ("forward", "pointwise", "gradient", "optimizer")
        )
        assert row["fast_s"] == pytest.approx(phases)
        assert min(row["plain_s"], row["floor_s"]) > 0
    plain, fast, *_ = figures["steps"]
    assert plain["ratio"] == 1
    assert fast["ratio"] == pytest.approx(plain["seconds"][0] / fast["seconds"][0])


def test_memory_is_measured_by_case(tmp_path: Path):
    file = tmp_path / "figures.json"
    memory.main(["--arch", "tinycnn", "--batch-size", "2", "--save", str(file)])
    cases = json.loads(file.read_text())["cases"]
    assert [case["method"] for case in cases] == list(memory.METHODS)
    assert all(case["activation_bytes"] > 0 and case["against_first"] == 1 for case in cases)
    # (100 + 1) x 32 x 32 elements pass the first layer, (200 + 100) at fewer pixels the others
    assert cases[0]["largest_layer_bytes"] == 4 * 2 * max(103 * 1024, 100 * 1024 + 200 * 256)


@pytest.mark.slow
def test_backpropagation_and_forward_forward_learn_the_same_task(tmp_path: Path):
    file = tmp_path / "figures.json"
    options = ["--task", "digits", "--limit", "200", "--epochs", "1", "--target", "100"]
    backprop.main([*options, "--checks", "1", "--no-compile", "--save", str(file)])
    methods = json.loads(file.read_text())["methods"]
    assert [row["method"] for row in methods] == ["forward-forward", "backpropagation"]
    assert all(row["seconds_to_target"] is None for row in methods)
    assert all(row["best_accuracy"] > 15 and row["images_per_s"] > 0 for row in methods)


@pytest.mark.ray
@pytest.mark.slow
def test_pipelines_are_measured_and_larger_ones_simulated(tmp_path: Path):
    file = tmp_path / "figures.json"
    options = ["--arch", "tinycnn", "--batch-size", "4", "--steps", "3", "--repeats", "1"]
    with local_ray():
        assert scaling.main([*options, "--stages", "1,2,3", "--save", str(file)]) == 0
    figures = json.loads(file.read_text())
    names = [row["pipeline"] for row in figures["measured"]]
    assert names[:3] == ["1 stage", "2 stages", "replicas 2"]
    assert names[3] == "2 apart, without sums"
    assert names[4].startswith("one process")
    for row in figures["measured"]:
        assert row["images_per_s"] == pytest.approx(4 / row["seconds_a_batch"][0])
        assert all(0 < share < 1.1 for share in row["busy"])
    assert figures["measured"][0]["speedup"] == 1
    assert all(row["simulated"] is True for row in figures["simulated"])
    assert sorted({row["devices"] for row in figures["simulated"]}) == [3, 8, 16, 64]
    assert figures["two_stages_against_one_process"] > 0
