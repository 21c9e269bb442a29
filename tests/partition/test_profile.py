"""Timing of layers, its cache, and costs from times."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, parse_kernels
from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.kernels import amx
from rayff.models.zoo import architecture
from rayff.partition import profile
from rayff.partition.layer_costs import AllReduceTime, LayerTime, costs
from rayff.partition.profile import Conditions, check_kernels, time_layers
from tests.helpers import modules
from tests.helpers.layers import CPU
from tests.helpers.losses import LINEAR
from tests.helpers.modules import HERE

TINYCNN = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
RESNET = architecture("resnet", num_classes=2, image_channels=3, width=2)
MODULES = architecture(f"{HERE}:every_kind", num_classes=2, image_channels=3)
CONDITIONS = Conditions(
    recipe=Recipe(batch_size=2), num_classes=2, device=CPU, dtype=torch.float32
)
CONV = (Kernels(),) * 4
SECONDS = LayerTime(forward_s=1.0, pointwise_s=2.0, gradient_s=4.0, optimizer_s=8.0)


class OtherAttention(modules.Attention):
    """Of the same parts, with other code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the timings, in a folder of the test's own."""
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path))
    return tmp_path / "timings.json"


@pytest.fixture
def timed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that would have been timed, by index."""
    layers: list[int] = []

    def time_layer(spec: Any, *_: Any, **options: Any) -> LayerTime:
        layers.append(spec.index)
        return SECONDS

    monkeypatch.setattr(profile, "time_layer", time_layer)
    return layers


PLAIN = replace(CONDITIONS, rule="plain", loss=LossConfig(name="predsim"))


@pytest.mark.usefixtures("cache")
class TestTimes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_module_has_its_times(self, dtype: torch.dtype):
        times = time_layers(MODULES, replace(PLAIN, dtype=dtype), (Kernels(),) * 5)
        assert len(times) == 5
        for time in times:
            assert min(time.forward_s, time.gradient_s, time.optimizer_s) > 0
            assert time.pointwise_s == 0

    @pytest.mark.parametrize("network", [TINYCNN, RESNET], ids=lambda network: network.name)
    @pytest.mark.parametrize(
        ("rule", "loss"), [("fast", "goodness"), ("plain", "goodness"), ("plain", LINEAR)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_layer_has_its_times(
        self, network: Any, rule: str, loss: str, dtype: torch.dtype
    ):
        conditions = replace(CONDITIONS, rule=rule, loss=LossConfig(name=loss), dtype=dtype)
        times = time_layers(network, conditions, (Kernels("conv", "unfold"),) * len(network))
        assert len(times) == len(network)
        for time in times:
            phases = (time.forward_s, time.pointwise_s, time.gradient_s, time.optimizer_s)
            assert all(0 <= seconds < 10 and math.isfinite(seconds) for seconds in phases)
            assert time.total_s == pytest.approx(sum(phases))
            assert time.images_s == pytest.approx(sum(phases[:3]))
            assert time.forward_s > 0
            assert (time.pointwise_s > 0) == (rule == "fast")

    @pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon", "torch.optim:RMSprop"])
    def test_any_optimizer_is_timed(self, optimizer: str):
        recipe = Recipe(batch_size=1, optimizer=optimizer)
        times = time_layers(TINYCNN, replace(CONDITIONS, recipe=recipe), CONV)
        assert min(layer.optimizer_s for layer in times) > 0


class TestKernels:
    def test_a_backend_that_cannot_compute_a_layer_is_named_with_those_that_can(self):
        resnet101 = architecture("resnet101", num_classes=2, image_channels=1)
        kernels = parse_kernels("conv,winograd" + 98 * ",conv")  # layer 1 has a 1x1 kernel
        with pytest.raises(UserError) as caught:
            time_layers(resnet101, CONDITIONS, kernels)
        assert str(caught.value) == (
            "--kernels: layer 1 cannot be computed with winograd here; it can with conv, unfold"
        )

    @pytest.mark.parametrize(
        ("missing", "dtype", "reason"),
        [
            ("no tile units", torch.bfloat16, "no tile units"),
            (None, torch.float32, "it multiplies bfloat16 only: --precision bf16"),
        ],
    )
    def test_amx_is_refused_with_the_reason(
        self,
        missing: str | None,
        dtype: torch.dtype,
        reason: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(amx, "missing", lambda: missing)
        with pytest.raises(
            UserError, match=rf"layer 0 .* with amx here \({reason}\); it can with"
        ):
            check_kernels(TINYCNN, parse_kernels("amx", 4), CPU, dtype)


class TestCache:
    def test_a_shape_is_timed_once(self, timed: list[int]):
        kernels = (Kernels(),) * 17
        first = time_layers(RESNET, CONDITIONS, kernels)
        assert timed == [0, 1, 5, 6, 9, 10, 13, 14]
        assert time_layers(RESNET, CONDITIONS, kernels) == first == [SECONDS] * 17
        assert len(timed) == 8

    @pytest.mark.parametrize(
        "change",
        [
            {"recipe": Recipe(batch_size=3)},
            {"recipe": Recipe(batch_size=2, optimizer="sgd")},
            {"recipe": Recipe(batch_size=2, dropout=0.0)},
            {"recipe": Recipe(batch_size=2, clip_norm=1.0)},
            {"dtype": torch.bfloat16},
            {"rule": "plain"},
            {"loss": LossConfig(name=LINEAR)},
            {"neighbours": 1},
            {"num_classes": 1},
        ],
        ids=str,
    )
    def test_other_conditions_are_timed_anew(self, change: dict[str, Any], timed: list[int]):
        for conditions in (CONDITIONS, replace(CONDITIONS, **change)):
            time_layers(TINYCNN, conditions, CONV)
        assert timed == [0, 1, 2, 3, 0, 1, 2, 3]

    def test_modules_of_one_kind_are_timed_once_wherever_they_are(
        self, timed: list[int], monkeypatch: pytest.MonkeyPatch
    ):
        def blocks(kind: Any, loss: Any = None) -> Any:
            monkeypatch.setattr(
                modules,
                "per_image",
                lambda **options: [
                    partial(modules.Tokens, 1, 6, 8),
                    *[modules.ModuleRow(partial(kind, 6), loss)] * 3,
                ],
            )
            made = architecture(f"{HERE}:per_image", num_classes=2, image_channels=1)
            time_layers(made, PLAIN, CONV)
            return list(timed)

        assert blocks(modules.Attention) == [0, 1]
        assert blocks(modules.Attention) == [0, 1]
        assert blocks(modules.Attention, "linear") == [0, 1, 1]
        assert blocks(OtherAttention) == [0, 1, 1, 1]

    def test_other_kernels_and_threads_are_timed_anew(self, timed: list[int]):
        time_layers(TINYCNN, CONDITIONS, CONV)
        time_layers(TINYCNN, CONDITIONS, (Kernels("unfold", "conv"), *CONV[1:]))
        assert timed == [0, 1, 2, 3, 0]
        torch.set_num_threads(2)
        time_layers(TINYCNN, CONDITIONS, CONV)
        assert timed[5:] == [0, 1, 2, 3]

    def test_the_schedule_of_learning_rates_does_not_matter(self, timed: list[int]):
        time_layers(TINYCNN, CONDITIONS, CONV)
        recipe = Recipe(batch_size=2, epochs=3, lr=0.5, lr_min=0.1, warmup_epochs=2, lr_scale=0.5)
        time_layers(TINYCNN, replace(CONDITIONS, recipe=recipe), CONV)
        steps: Any = {"lr_schedule": "step", "lr_min": None, "lr_steps": (0.5,), "lr_decay": 0.1}
        time_layers(TINYCNN, replace(CONDITIONS, recipe=replace(recipe, **steps)), CONV)
        assert len(timed) == 4

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x80\x00",
            b"[1, 2]",
            b"{}",
            b'{"a": 3}',
            b'{"a": {"forward_s": 1}}',
            b'{"a": {"forward_s": "x", "pointwise_s": 1, "gradient_s": 1, "optimizer_s": 1}}',
            b'{"a": null}',
            b'{"a": {"forward_s": NaN, "pointwise_s": 1, "gradient_s": 1, "optimizer_s": 1}}',
            b'{"a": {"forward_s": -1, "pointwise_s": 1, "gradient_s": 1, "optimizer_s": 1}}',
        ],
    )
    def test_a_damaged_file_counts_as_empty(self, content: bytes, timed: list[int], cache: Path):
        cache.write_bytes(content)
        time_layers(TINYCNN, CONDITIONS, CONV)
        time_layers(TINYCNN, CONDITIONS, CONV)
        assert len(timed) == 4
        assert len(json.loads(cache.read_bytes())) == 4

    def test_a_folder_that_cannot_be_written_costs_time_alone(
        self, timed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        (tmp_path / "file").touch()
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "file" / "folder"))
        time_layers(TINYCNN, CONDITIONS, CONV)
        time_layers(TINYCNN, CONDITIONS, CONV)
        assert len(timed) == 8


def test_transfers_and_gradients_cost_their_bytes_at_the_measured_speed():
    network = architecture("resnet", num_classes=10, image_channels=3)
    times = [replace(SECONDS, forward_s=float(i), optimizer_s=0.5 * i) for i in range(17)]
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
