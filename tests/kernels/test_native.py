"""The compiled kernels: cache folder, compilers that fail, machines without one."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rayff.kernels import native
from rayff.kernels.convolution import backends
from rayff.kernels.device_class import device_class
from tests.helpers.layers import CPU, SHAPES


def write_compiler(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of $CXX, with an empty cache folder."""
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cxx"


@pytest.fixture
def empty_caches() -> Iterator[None]:
    cached: list[functools._lru_cache_wrapper[object]] = [native.library, native.missing]  # type: ignore[list-item]
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("compiler", "empty_caches")
def test_without_a_compiler_the_reason_is_named_and_torch_computes():
    reason = native.missing()
    assert reason is not None
    assert reason.startswith("$CXX (")
    assert reason.endswith("/cxx) is not there")
    assert backends(SHAPES["100-100 k3 s1 32"], CPU, torch.float32) == ("conv", "unfold")
    assert device_class(CPU) == "cpu-torch"


def test_a_compiler_that_fails_is_named_with_its_message(compiler: Path, tmp_path: Path):
    write_compiler(compiler, "echo 'out of order' >&2\nexit 3")
    with pytest.raises(native.NoKernelsError, match="cxx fails .out of order."):
        native.library.__wrapped__()
    assert not list((tmp_path / "cache").iterdir())


def test_flags_of_the_users_come_last_and_have_a_library_of_their_own(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_compiler(compiler, f'echo "$@" > {tmp_path}/arguments; exit 1')
    usual = native.library_file(str(compiler))
    monkeypatch.setenv("RAYFF_CXXFLAGS", "-march=x86-64-v3 -g")
    assert native.library_file(str(compiler)) != usual
    with pytest.raises(native.NoKernelsError):
        native.library.__wrapped__()
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments.index("-march=native") < arguments.index("-march=x86-64-v3")
    assert "-g" in arguments


@pytest.mark.slow
def test_a_compiler_without_the_tile_units_compiles_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    real = native.find_compiler()
    compiler = tmp_path / "cxx"
    monkeypatch.setenv("CXX", str(compiler))
    error = "echo 'amx.cpp: In function:' >&2; echo 'amx.cpp:9: error: unknown' >&2; exit 1"
    write_compiler(compiler, f'case "$*" in *WITHOUT_AMX*) exec {real} "$@";; esac\n{error}')
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
    assert native.library.__wrapped__().amx_permitted() == 0
    write_compiler(compiler, error)
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "another"))
    with pytest.raises(native.NoKernelsError, match="fails .amx.cpp:9: error: unknown."):
        native.library.__wrapped__()
