import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, parse_kernels
from rayff.config.recipe import Recipe
from rayff.kernels import native
from rayff.kernels.convolution import methods
from rayff.models.zoo import architecture
from rayff.partition import profile
from rayff.partition.profile import AllReduceTime, Conditions, LayerTime, costs, time_layers

TINYCNN = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
RESNET = architecture("resnet", num_classes=2, image_channels=3, width=2)
CONDITIONS = Conditions(
    recipe=Recipe(batch_size=2), num_classes=2, device=torch.device("cpu"), dtype=torch.float32
)


def layer_time(**changes: Any) -> LayerTime:
    seconds = {"forward_s": 1.0, "pointwise_s": 2.0, "gradient_s": 4.0, "optimizer_s": 8.0}
    return LayerTime(**{"kernels": Kernels("conv", "unfold"), **seconds, **changes})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the timings, in a folder that no other test uses."""
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path))
    return tmp_path / "timings.json"


@pytest.fixture
def timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were timed, by index; none really is."""
    layers: list[int] = []

    def time_layer(spec: Any, *_: Any) -> LayerTime:
        layers.append(spec.index)
        return layer_time()

    monkeypatch.setattr(profile, "time_layer", time_layer)
    return layers


@pytest.mark.parametrize("network", [TINYCNN, RESNET], ids=lambda network: network.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["fast", "plain"])
def test_every_layer_has_its_times_and_kernels_that_fit(
    network: Any, dtype: torch.dtype, rule: str, cache: Path
):
    times = time_layers(network, replace(CONDITIONS, dtype=dtype, rule=rule))
    assert len(times) == len(network)
    for spec, time in zip(network.layers, times, strict=True):
        phases = (time.forward_s, time.pointwise_s, time.gradient_s, time.optimizer_s)
        assert all(0 <= seconds < 10 and math.isfinite(seconds) for seconds in phases)
        assert time.total_s == pytest.approx(sum(phases))
        known = ("conv",) if rule == "plain" else methods(spec, CONDITIONS.device, dtype)
        assert {time.kernels.forward, time.kernels.gradient} <= set(known)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_any_optimizer_can_be_timed(optimizer: Any, cache: Path):
    recipe = Recipe(batch_size=1, optimizer=optimizer)
    times = time_layers(TINYCNN, replace(CONDITIONS, recipe=recipe))
    assert min(layer.optimizer_s for layer in times) > 0


def test_kernels_that_are_given_are_kept(cache: Path):
    wanted = parse_kernels("conv,winograd,unfold/conv,conv/winograd")
    assert tuple(time.kernels for time in time_layers(TINYCNN, CONDITIONS, wanted)) == wanted


def test_kernels_that_do_not_fit_are_named_with_those_that_do(cache: Path):
    resnet101 = architecture("resnet101", num_classes=2, image_channels=1)
    wanted = parse_kernels("conv,winograd" + 98 * ",conv")  # layer 1 has a 1x1 kernel
    with pytest.raises(UserError) as refused:
        time_layers(resnet101, CONDITIONS, wanted)
    assert str(refused.value) == (
        "--kernels: layer 1 cannot be computed with winograd here; it can with conv, unfold"
    )


class TestTheCache:
    def test_a_shape_is_timed_once(self, timed: list[int]):
        first = time_layers(RESNET, CONDITIONS)
        assert timed == [0, 1, 5, 6, 9, 10, 13, 14]
        assert time_layers(RESNET, CONDITIONS) == first == [layer_time()] * 17
        assert len(timed) == 8

    @pytest.mark.parametrize(
        "change",
        [
            {"recipe": Recipe(batch_size=3)},
            {"recipe": Recipe(batch_size=2, optimizer="sgd")},
            {"recipe": Recipe(batch_size=2, dropout=0.0)},
            {"dtype": torch.bfloat16},
            {"rule": "plain"},
            {"neighbours": 1},
            {"num_classes": 1},
        ],
        ids=str,
    )
    def test_other_conditions_are_timed_anew(self, change: dict[str, Any], timed: list[int]):
        for conditions in (CONDITIONS, replace(CONDITIONS, **change)):
            time_layers(TINYCNN, conditions)
        assert timed == [0, 1, 2, 3, 0, 1, 2, 3]

    def test_so_is_another_number_of_threads(self, timed: list[int]):
        time_layers(TINYCNN, CONDITIONS)
        torch.set_num_threads(2)
        time_layers(TINYCNN, CONDITIONS)
        assert len(timed) == 8

    def test_a_schedule_does_not_change_a_step(self, timed: list[int]):
        time_layers(TINYCNN, CONDITIONS)
        recipe = Recipe(batch_size=2, epochs=3, lr=0.5, lr_min=0.1)
        time_layers(TINYCNN, replace(CONDITIONS, recipe=recipe))
        assert len(timed) == 4

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x00",
            b"[1, 2]",
            b"{}",
            b'{"a": 3}',
            b'{"a": {"kernels": {"forward": "conv"}}}',
            b'{"a": {"kernels": {"forward": "conv", "gradient": "conv"}, "forward_s": "x"}}',
            b'{"a": {"kernels": null, "forward_s": 1}}',
        ],
    )
    def test_a_damaged_file_is_as_good_as_none(
        self, content: bytes, timed: list[int], cache: Path
    ):
        cache.write_bytes(content)
        time_layers(TINYCNN, CONDITIONS)
        time_layers(TINYCNN, CONDITIONS)
        assert len(timed) == 4
        assert len(json.loads(cache.read_bytes())) == 4

    def test_a_folder_that_cannot_be_written_costs_time_alone(
        self, timed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        (tmp_path / "file").touch()
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "file" / "folder"))
        time_layers(TINYCNN, CONDITIONS)
        time_layers(TINYCNN, CONDITIONS)
        assert len(timed) == 8

    def test_the_folder_is_the_users_own_unless_it_is_named(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("RAYFF_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        assert native.cache_dir() == Path("/elsewhere/rayff")
        monkeypatch.setenv("RAYFF_CACHE_DIR", "/here")
        assert native.cache_dir() == Path("/here")


def test_transfers_and_gradients_cost_their_bytes_at_the_measured_speed():
    network = architecture("resnet", num_classes=10, image_channels=3)
    times = [layer_time(forward_s=float(index), optimizer_s=0.5 * index) for index in range(17)]
    found = costs(
        network,
        times,
        batch_size=8,
        bytes_per_element=2,
        seconds_per_byte=1e-9,
        all_reduce=AllReduceTime(call_s=0.25, byte_s=1e-6),
    )
    assert found.layer_s == [float(index) + 6 for index in range(17)]
    assert found.step_s == [0.5 * index for index in range(17)]
    assert found.all_reduce_s[1] == pytest.approx(0.25 + 100 * 100 * 9 * 4 * 1e-6)
    assert len(found.boundary_s) == 17
    assert found.boundary_s[0] == 0
    assert found.boundary_s[5] == pytest.approx(200 * 32 * 32 * 8 * 2 * 1e-9)
    assert found.boundary_s[6] == pytest.approx((200 * 16 * 16 + 200 * 32 * 32) * 8 * 2 * 1e-9)
    assert found.boundary_s[16] == pytest.approx(800 * 4 * 4 * 8 * 2 * 1e-9)
