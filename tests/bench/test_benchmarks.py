"""The benchmarks on networks so small that they take seconds."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayff.bench import __main__ as program
from rayff.config.errors import UserError
from tests.helpers.losses import LINEAR
from tests.helpers.ray_instance import local_ray


def figures(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Run a benchmark and return what it saves."""
    file = folder / "figures.json"
    assert program.main([name, *options, "--save", str(file)]) == 0
    saved: dict[str, Any] = json.loads(file.read_text())
    assert saved["benchmark"] == name
    return saved


def test_the_phases_of_a_layer_are_its_time(tmp_path: Path):
    options = ["--arch", "tinycnn", "--batch-size", "1", "--repeats", "1"]
    options += ["--augment", "crop:2,flip"]
    found = figures(tmp_path, "step", *options, "--kernels", "conv/unfold")
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2, 3]
    for row in found["layers"]:
        phases = sum(
            row[f"{name}_s"] for name in ("forward", "pointwise", "gradient", "optimizer")
        )
        assert row["fast_s"] == pytest.approx(phases)
        assert row["kernels"] == "conv/unfold"
        assert min(row["plain_s"], row["floor_s"]) > 0
    plain, fast, *_ = found["steps"]
    assert plain["ratio"] == 1
    assert fast["ratio"] == pytest.approx(plain["seconds"][0] / fast["seconds"][0])
    for row, names in zip(found["augmentation"], ["crop:2", "flip", "crop:2,flip"], strict=True):
        assert row["augmentation"] == names
        assert row["share_of_step"] == pytest.approx(row["seconds"][0] / fast["seconds"][0])


def test_losses_are_timed_against_goodness(tmp_path: Path):
    options = ["--arch", "tinycnn", "--batch-size", "1", "--repeats", "1"]
    found = figures(tmp_path, "losses", *options, "--losses", f"linear,{LINEAR}")["losses"]
    assert [(row["loss"], row["rule"]) for row in found] == [
        *(("goodness", "fast"), ("linear", "fast"), (LINEAR, "plain")),
    ]
    base = found[0]["seconds"][0]
    assert [row["ratio"] for row in found] == [row["seconds"][0] / base for row in found]


@pytest.mark.slow
def test_a_training_is_timed_from_its_command_to_its_first_step(tmp_path: Path):
    options = ["--limit", "16", "--batch-size", "8", "--backend", "local", "--repeats", "1"]
    found = figures(tmp_path, "startup", *options)
    for each in (found["first"], *found["others"]):
        assert 0 < each["begun_s"] < each["done_s"]
    with pytest.raises(UserError, match="the training failed: .* no task 'digit'"):
        program.main(["startup", "--task", "digit"])


@pytest.mark.slow
def test_memory_is_measured_by_case(tmp_path: Path):
    options = ["--arch", "tinycnn", "--batch-size", "16", "--methods", "linear,checkpointing"]
    local, end_to_end = figures(tmp_path, "memory", *options)["cases"]
    assert (local["method"], end_to_end["method"]) == ("linear", "checkpointing")
    # of 100 x 32 x 32 elements the first layer holds the convolution and the features
    assert local["largest_layer_bytes"] > 2 * 4 * 16 * 100 * 32 * 32
    assert 0.9 < local["against_largest_layer"] < 1.1  # whatever the depth
    assert end_to_end["largest_layer_bytes"] is None
    assert end_to_end["step_bytes"] > 0


@pytest.mark.slow
def test_methods_train_to_the_same_targets(tmp_path: Path):
    options = ["--width", "10", "--limit", "200", "--epochs", "2", "--search-epochs", "1"]
    options += ["--methods", "linear,accumulation", "--targets", "11,100", "--lrs", "0.001,0.01"]
    options += ["--seeds", "1", "--augment", "crop:2,cutout", "--no-compile"]
    plot = tmp_path / "plot.png"
    found = figures(tmp_path, "to-accuracy", *options, "--plot", str(plot))
    assert [row["lr"] for row in found["search"]] == [0.001, 0.01]
    for row, method in zip(found["methods"], ["linear", "accumulation"], strict=True):
        assert row["method"] == method
        (training,) = found["trainings"][method]
        assert [check["images"] for check in training["history"]] == [112, 200, 312, 400]
        assert row["valid_accuracy"][0] == training["history"][-1]["valid_accuracy"] > 11
        assert row["peak_bytes"] > 3 * 4 * 10_000  # weights and two moments
    for row in found["targets"]:
        (training,) = found["trainings"][row["method"]]
        first = next((c for c in training["history"] if c["valid_accuracy"] >= 11), None)
        assert first is not None
        assert row["seconds"] == ([first["seconds"]] if row["target"] == "11%" else None)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.ray
@pytest.mark.slow
class TestOnRay:
    def test_pipelines_are_measured_and_larger_ones_simulated(self, tmp_path: Path):
        options = ["--arch", "tinycnn", "--batch-size", "4", "--steps", "3", "--repeats", "1"]
        with local_ray():
            found = figures(tmp_path, "scaling", *options, "--stages", "1,2,3")
        names = [row["pipeline"] for row in found["measured"]]
        assert names[:3] == ["1 stage", "2 stages", "replicas 2"]
        assert names[3] == "2 separate, no all-reduce"
        assert names[4].startswith("one process")
        for row in found["measured"]:
            assert row["images_per_s"] == pytest.approx(4 / row["seconds_a_batch"][0])
            assert all(0 < share < 1.1 for share in row["busy"])
        assert found["measured"][0]["speedup"] == 1
        shares = [row["predicted_share"] for row in found["measured"]]
        assert [share is None for share in shares] == [False, False, False, True, True]
        assert all(0.1 < share < 10 for (share,) in shares[:3])
        assert found["largest_prediction_error"] == max(abs(s - 1) for (s,) in shares[:3])
        assert all(row["simulated"] is True for row in found["simulated"])
        assert sorted({row["devices"] for row in found["simulated"]}) == [3, 8, 16, 64]
        assert found["two_stages_against_one_process"] > 0

    def test_a_stretch_with_a_snapshot_is_held_against_one_without(self, tmp_path: Path):
        options = ["--arch", "tinycnn", "--batch-size", "2", "--steps", "2", "--repeats", "2"]
        with local_ray():
            found = figures(tmp_path, "snapshot", *options)
        assert [len(found[f"{name}_s"]) for name in ("without", "with", "costs", "written")] == (
            [2] * 4
        )
        for cost, without, with_one in zip(
            found["costs_s"], found["without_s"], found["with_s"], strict=True
        ):
            assert cost == pytest.approx(with_one - without)
        assert min(found["written_s"]) > 0
        assert found["bytes"] > 3 * 4 * 2.6e6  # weights and two moments of tinycnn

    def test_memory_is_sampled_until_the_time_is_over(self, tmp_path: Path):
        options = ["--width", "10", "--minutes", "0.08", "--every-s", "0.5"]
        with local_ray():
            found = figures(tmp_path, "endurance", *options)
        samples = found["samples"]
        assert samples[-1]["at_s"] >= 4
        assert all(sample["driver_bytes"] > 0 < sample["stages_bytes"] for sample in samples)
        assert any(sample["store_bytes"] > 0 for sample in samples)  # it is empty at times

    def test_messages_are_timed_by_size_and_transport(self, tmp_path: Path):
        options = ["--transports", "object-store,gloo", "--sizes", "1,2", "--repeats", "2"]
        with local_ray():
            found = figures(tmp_path, "transport", *options, "--messages", "5")["messages"]
        assert [(row["MiB"], row["transport"]) for row in found] == [
            *((1, "object-store"), (1, "gloo"), (2, "object-store"), (2, "gloo")),
        ]
        assert all(len(row["message_s"]) == 2 and min(row["message_s"]) > 0 for row in found)
