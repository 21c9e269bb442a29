"""What the actors' devices have in common, and the warnings of planning."""

from types import SimpleNamespace
from typing import Any

import pytest

from rayff import TrainConfig
from rayff.config.activity import current_activity
from rayff.config.kernels import Kernels
from rayff.distributed import planner
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.stage_actor import Profile
from rayff.engine.preparation import prepare
from rayff.engine.resolution import warn_of_missing_kernels
from rayff.engine.run import Run
from rayff.partition.plan import StageResources

AMX = Capabilities("cpu-amx", "bf16")
AVX512 = Capabilities("cpu-avx512", "fp32")
NO_COMPILER = Capabilities("cpu-torch", "bf16", "no C++ compiler is there")
GPU = Capabilities("cuda", "bf16")
GPU_NO_TRITON = Capabilities("cuda", "bf16", "no Triton")


@pytest.mark.parametrize(
    ("found", "common"),
    [
        ([AMX, AMX], AMX),
        ([AMX, AVX512], AVX512),
        ([AVX512, AMX], AVX512),
        ([AMX, NO_COMPILER], NO_COMPILER),
        ([AVX512, NO_COMPILER], Capabilities("cpu-torch", "fp32", "no C++ compiler is there")),
        ([GPU, GPU_NO_TRITON], GPU_NO_TRITON),
    ],
)
def test_actors_have_in_common_what_the_least_able_device_can_do(
    found: list[Capabilities], common: Capabilities
) -> None:
    assert Capabilities.common(found) == common


@pytest.fixture
def run() -> Run:
    prepared = prepare(TrainConfig(), resume=False)
    return prepared.resolve("fp32", (Kernels(),) * len(prepared.architecture))


@pytest.mark.parametrize(
    ("config", "missing", "gpus", "parts"),
    [
        (
            TrainConfig(),
            "/cache/kernels.so cannot be used (Permission denied)",
            0,
            [
                "cannot be used (Permission denied); it is faster with a C++ compiler",
                "RAYFF_CACHE_DIR that can be written and from which programs may run",
            ],
        ),
        (
            TrainConfig(),
            "Failed to find C compiler",
            1,
            ["Failed to find C compiler; it is faster with Triton", "a C compiler"],
        ),
        (TrainConfig(), None, 0, []),
        (TrainConfig(rule="plain"), "no compiler", 0, []),
        (TrainConfig(method="bp"), "no compiler", 0, []),
    ],
)
def test_missing_kernels_are_named_with_their_remedy(
    config: TrainConfig, missing: str | None, gpus: float, parts: list[str]
) -> None:
    prepared = prepare(config, resume=False)
    run = prepared.resolve("fp32", (Kernels(),) * len(prepared.architecture))
    warnings: list[str] = []
    warn_of_missing_kernels(run, missing, warnings.append, on_gpu=gpus > 0)
    assert len(warnings) == bool(parts)
    assert all(part in warnings[0] for part in parts)


def test_the_timing_of_the_layers_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def wait_for(calls: object, what: str) -> list[Profile]:
        found = current_activity()
        shown.append("" if found is None else found.text)
        return [Profile(times=[], seconds_per_byte=1e-9)]

    monkeypatch.setattr(planner, "wait_for", wait_for)
    monkeypatch.setattr(planner, "costs", lambda *_, **options: None)
    actor: Any = SimpleNamespace(profile=SimpleNamespace(remote=lambda *_: None))
    planner.measure_costs(run, StageResources(cpus=1, gpus=0), [actor])
    assert shown == ["timing the layers, once on a machine"]
    assert current_activity() is None
