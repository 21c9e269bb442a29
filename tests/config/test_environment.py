from pathlib import Path

import pytest

from rayff.config.environment import cache_dir
from tests.helpers.mistakes import refused


def test_the_cache_folder_is_the_users_unless_one_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAYFF_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/rayff")
    monkeypatch.setenv("RAYFF_CACHE_DIR", "/here")
    assert cache_dir() == Path("/here")


def test_a_user_without_a_home_is_asked_for_a_cache_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RAYFF_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with refused("no home folder for the cache: set HOME, or RAYFF_CACHE_DIR"):
        cache_dir()
