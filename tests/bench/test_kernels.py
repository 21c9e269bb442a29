"""The benchmark that writes and checks the table of kernels, with tiny layers and given times."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayff.bench import kernels
from rayff.config.kernels import Kernels
from rayff.kernels import table
from rayff.kernels.autotune import timed_images
from rayff.kernels.device_class import device_class
from rayff.kernels.table import Row, read_table, table_kernels, write_table
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
OWN = device_class(CPU)
TINY = ["--arch", "tinycnn", "--batch-size", "1", "--repeats", "1", "--precision", "fp32"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of the test's own, with a row of another class."""
    path = tmp_path / "kernels.json"
    write_table(path, {"cuda": {"machine": "a GPU", "float32": [[1, [3, 1, 2, 2, 8], "conv"]]}})
    monkeypatch.setattr(kernels, "PATH", path)
    monkeypatch.setattr(table, "PATH", path)
    monkeypatch.setattr(table, "_rows", table._rows.__wrapped__)
    return path


def give_kernels(text: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, LayerSpec]]:
    """Let each timing choose the same kernels; return what is timed."""
    timed = []

    def fastest(spec: LayerSpec, images: int, *_: Any) -> Kernels:
        timed.append((images, spec))
        forward, _, gradient = text.partition("/")
        return Kernels(forward, gradient or forward)

    monkeypatch.setattr(kernels, "fastest_kernels", fastest)
    return timed


class TestUpdate:
    def test_each_shape_is_timed_once_and_found_again(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        timed = give_kernels("conv/unfold", monkeypatch)
        assert kernels.main([*TINY, "--update", "--batch-size", "2,1"]) == 0
        assert len(timed) == 2 * 5  # the first layer for colour and for grey images
        assert {images for images, _ in timed} == {2, 1}
        network = architecture("tinycnn", num_classes=10, image_channels=1)
        assert set(table_kernels(network, 4, OWN, torch.float32)) == {Kernels("conv", "unfold")}

    @pytest.mark.slow
    def test_rows_of_this_machine_stay_and_those_of_another_go(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        give_kernels("conv", monkeypatch)
        kernels.main([*TINY, "--update"])
        entry = read_table(path)[OWN]
        entry["float32"].append([7, [3, 1, 2, 2, 8], "unfold"])
        others = {"cuda": read_table(path)["cuda"]}
        write_table(path, {OWN: entry, **others})
        kernels.main([*TINY, "--update"])
        assert read_table(path) == {OWN: entry, **others}
        write_table(path, {OWN: {**entry, "torch": "1.0"}, **others})
        kernels.main([*TINY, "--update"])
        rows = read_table(path)[OWN]["float32"]
        assert sorted(rows) == sorted(row for row in entry["float32"] if row[0] == 1)

    @pytest.mark.slow
    def test_a_real_timing_gives_kernels_of_each_format(self, path: Path):
        kernels.main([*TINY, "--update"])
        entry = read_table(path)[OWN]
        assert entry["torch"] == torch.__version__
        assert len(entry["float32"]) == 5


@pytest.mark.parametrize("tuned", ["conv", "unfold"])
def test_a_step_by_the_table_is_held_against_an_autotuned_one(
    tuned: str, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    give_kernels(tuned, monkeypatch)
    built = []

    def training_step(run: Any, device: torch.device) -> Any:
        name = str(run.resolved.kernels[0])
        built.append(name)
        return lambda images: 1.0 if name == "unfold" else 1.06

    monkeypatch.setattr(kernels, "training_step", training_step)
    file = tmp_path / "figures.json"
    code = kernels.main([*TINY, "--save", str(file)])
    (row,) = json.loads(file.read_text())["steps"]
    assert built == (["conv", "unfold"] if tuned == "unfold" else ["conv"])
    assert row["ratio"] == pytest.approx(1.06 if tuned == "unfold" else 1)
    assert row["layers_that_differ"] == (4 if tuned == "unfold" else 0)
    assert code == (1 if tuned == "unfold" else 0)  # the table may be a twentieth slower


def test_real_steps_are_compared(path: Path):
    assert kernels.main(TINY) in (0, 1)


def test_a_written_table_has_a_row_a_line(tmp_path: Path):
    file = tmp_path / "kernels.json"
    rows = [[128, [3, 1, 8, 8, 4], "unfold"], [16, [3, 1, 8, 8, 4], "conv"]]
    write_table(file, {"cuda": {"machine": "a GPU", "float32": rows}, "cpu": {"float32": []}})
    assert read_table(file)["cuda"] == {"machine": "a GPU", "float32": rows[::-1]}
    assert '\n   [16, [3, 1, 8, 8, 4], "conv"],\n   [128' in file.read_text()


def test_a_large_layer_is_timed_with_fewer_images():
    large = architecture("resnet_large", num_classes=10, image_channels=3)[1]
    usual = architecture("resnet", num_classes=10, image_channels=3)[1]
    assert timed_images(usual, 512, CPU) == 128
    assert timed_images(large, 512, CPU) == 16
    assert timed_images(large, 4, CPU) == 4
    assert timed_images(large, 512, torch.device("cuda")) == 512


class TestLookup:
    def test_equally_near_rows_are_told_apart_by_batch_size_and_shape(self):
        spec = architecture("resnet", num_classes=10, image_channels=3)[1]
        below: Row = (32, (3, 1, 100, 100, 32), Kernels("unfold"))
        above: Row = (128, (3, 1, 100, 100, 32), Kernels("conv", "unfold"))
        wider: Row = (64, (3, 1, 200, 100, 32), Kernels("unfold", "conv"))
        for rows in ((below, above, wider), (wider, above, below)):
            assert table._nearest(spec, 64, rows, "cpu", torch.float32) == below[2]

    def test_float32_of_wide_vectors_is_shared_by_the_classes_that_have_them(self, path: Path):
        entry = {"float32": [[1, [5, 1, 3, 100, 32], "unfold"]], "bfloat16": []}
        write_table(path, {"cpu-avx512-bf16": entry})
        network = architecture("tinycnn", num_classes=10, image_channels=3)[:1]
        for name, expected in (("cpu-avx512", "unfold"), ("cpu-amx", "unfold"), ("cpu", "conv")):
            assert str(table_kernels(network, 1, name, torch.float32)[0]) == expected
        assert str(table_kernels(network, 1, "cpu-amx", torch.bfloat16)[0]) == "conv"
