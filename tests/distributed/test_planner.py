"""Which of the actors' findings counts, and what is told of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rayff.config.train_config import TrainConfig
from rayff.distributed import planner as planning
from rayff.distributed.planner import least_able, measure
from rayff.distributed.stage_actor import Profile
from rayff.models.zoo import architecture
from rayff.partition.plan import StageResources


def profile(**changes: Any) -> Profile:
    able: dict[str, Any] = {"precision": "bf16", "missing": None, "tiles": True}
    return Profile(times=[], seconds_per_byte=1e-9, **{**able, **changes})


def test_all_compute_as_the_least_able_can():
    able, without_tiles = profile(), profile(tiles=False)
    without_compiler = profile(tiles=False, missing="no C++ compiler is there")
    assert least_able([able, able]) is able
    assert least_able([able, without_tiles]) is without_tiles
    assert least_able([without_tiles, able]) is without_tiles
    assert least_able([able, without_compiler, without_tiles]) is without_compiler


def told(monkeypatch: pytest.MonkeyPatch, why: str, *, gpus: float, ready: bool) -> list[str]:
    """What a user is told while an actor measures that lacks the kernels."""
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: (calls, []) if ready else ([], calls))
    monkeypatch.setattr(planning, "wait_for", lambda calls, what: [profile(missing=why)])
    monkeypatch.setattr(planning, "costs", lambda *_, **options: None)
    actor: Any = SimpleNamespace(profile=SimpleNamespace(remote=lambda *_: None))
    network = architecture("tinycnn", num_classes=10, image_channels=1, width=None)
    said: list[str] = []
    resources = StageResources(cpus=1, gpus=gpus)
    measure(TrainConfig().resolved({}), network, resources, [actor], said.append)
    return said


def test_a_wait_and_missing_kernels_are_told_with_every_remedy(monkeypatch: pytest.MonkeyPatch):
    why = "/cache/kernels.so cannot be used (Permission denied)"
    waiting, missing = told(monkeypatch, why, gpus=0, ready=False)
    assert (
        waiting == "waiting for the actors, which time the layers where this machine has not yet"
    )
    assert "cannot be used (Permission denied); it is faster with a C++ compiler" in missing
    assert "RAYFF_CACHE_DIR that can be written and from which programs may run" in missing


def test_missing_kernels_of_a_gpu_have_their_own_remedy(monkeypatch: pytest.MonkeyPatch):
    (missing,) = told(monkeypatch, "Failed to find C compiler", gpus=1, ready=True)
    assert "Failed to find C compiler; it is faster with Triton" in missing
    assert "a C compiler" in missing
