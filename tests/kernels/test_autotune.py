"""Choosing backends by a timing: the choice from given times, and one real timing."""

from typing import Any

import pytest
import torch

from rayff.kernels import autotune as module
from rayff.kernels.autotune import autotune, fastest_kernels
from rayff.kernels.convolution import backends
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture
from tests.helpers.layers import CPU, SHAPES

SPEC = SHAPES["100-100 k3 s1 32"]
Times = dict[str, tuple[float, float, float]]


@pytest.mark.parametrize(
    ("times", "expected"),
    [  # seconds of unfolding, forward and gradient; conv takes 1 and 1
        ({"winograd": (0, 0.95, 0.95)}, "conv"),  # not a tenth faster
        ({"winograd": (0, 0.8, 0.8)}, "winograd"),
        ({"winograd": (0, 0.8, 1.2)}, "winograd/conv"),
        ({"unfold": (0.3, 0.7, 0.7)}, "unfold"),  # both share the unfolded input
        ({"unfold": (0.3, 0.7, 1.2)}, "conv"),
        ({"unfold": (0.3, 0.5, 1.5)}, "unfold/conv"),
        ({"unfold": (0.3, 0.5, 1.5), "winograd": (0, 2, 0.5)}, "unfold/winograd"),
    ],
    ids=str,
)
def test_the_fastest_pair_is_chosen(times: Times, expected: str, monkeypatch: pytest.MonkeyPatch):
    known: Times = {"conv": (0, 1, 1), **times}
    turns: list[str] = []

    def time_backend(spec: LayerSpec, backend: str, *tensors: Any) -> tuple[float, float, float]:
        turns.append(backend)
        turn = turns.count(backend)
        disturbed = {1: 100.0, 3: 50.0}.get(turn, 1.0)  # the first turn, and one of three
        unfold_s, forward_s, gradient_s = known[backend]
        return unfold_s * disturbed, forward_s * disturbed, gradient_s * disturbed

    monkeypatch.setattr(module, "backends", lambda *_: tuple(known))
    monkeypatch.setattr(module, "_time_backend", time_backend)
    assert str(fastest_kernels(SPEC, 2, CPU, torch.float32)) == expected
    assert turns == [*known] * 4


def test_layers_of_one_shape_are_timed_once(monkeypatch: pytest.MonkeyPatch):
    timed: list[int] = []

    def time_layer(spec: LayerSpec, *_: Any) -> int:
        timed.append(spec.index)
        return spec.index

    monkeypatch.setattr(module, "fastest_kernels", time_layer)
    resnet = architecture("resnet", num_classes=2, image_channels=3, width=2)
    found = autotune(resnet, 2, CPU, torch.float32)
    assert timed == [0, 1, 5, 6, 9, 10, 13, 14]
    assert found == (0, 1, 1, 1, 1, 5, 6, 6, 6, 9, 10, 10, 10, 13, 14, 14, 14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_gets_backends_that_can_compute_it(dtype: torch.dtype):
    network = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
    found = autotune(network, 2, CPU, dtype, repeats=1)
    for spec, kernels in zip(network.layers, found, strict=True):
        assert {*kernels.backends} <= {*backends(spec, CPU, dtype)}
