"""Which of the actors' findings counts."""

from typing import Any

from rayff.cluster.actor import Profile
from rayff.cluster.planning import least_able


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
