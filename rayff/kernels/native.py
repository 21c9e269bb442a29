"""The C++ kernels of this package, compiled at first use and kept in the cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch
from torch import Tensor

from rayff.config.environment import cache_dir

_SOURCES = [Path(__file__).with_name(name) for name in ("cpu.cpp", "amx.cpp")]
_HEADER = Path(__file__).with_name("cpu.h")
_FLAGS = (
    *("-O2", "-march=native", "-fno-trapping-math", "-fno-math-errno"),
    *("-std=c++17", "-shared", "-fPIC"),
)
_ATTEMPTS = (
    ("-fopenmp",),
    ("-fopenmp-simd",),  # some compilers come without OpenMP's threads
    ("-fopenmp", "-DWITHOUT_AMX"),  # some know a processor's tile units in part
    ("-fopenmp-simd", "-DWITHOUT_AMX"),
)
_COMPILE_TIMEOUT_S = 120.0


class NoKernelsError(Exception):
    """The kernels cannot be compiled here; the message says why, in a clause."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        NoKernelsError: there is no compiler, it fails, or its result cannot be loaded.
    """
    compiler = find_compiler()
    target = library_file(compiler)
    try:
        if not target.exists():
            _compile(compiler, target)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoKernelsError(f"{target} cannot be used ({error})") from error


def library_file(compiler: str) -> Path:
    """Return where the compiled kernels are kept, once they are."""
    text = [path.read_text() for path in (*_SOURCES, _HEADER)]
    key = hashlib.sha256("\0".join((*text, compiler, *_flags(), processor())).encode())
    return cache_dir() / f"kernels-{key.hexdigest()[:20]}.so"


def _flags() -> tuple[str, ...]:
    """Return the compiler's flags; those of RAYFF_CXXFLAGS, such as another -march, come last."""
    return *_FLAGS, *os.environ.get("RAYFF_CXXFLAGS", "").split()


@functools.cache
def missing() -> str | None:
    """Return why the kernels are missing, or None where they are here."""
    try:
        library()
    except NoKernelsError as error:
        return str(error)
    return None


def find_compiler() -> str:
    """Return the C++ compiler: $CXX, or the first of c++, g++ and clang++ on the path."""
    named = os.environ.get("CXX")
    for name in (named,) if named else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise NoKernelsError(f"$CXX ({named}) is not there" if named else "no C++ compiler is there")


@functools.cache
def processor() -> str:
    """Return the processor's model and instructions: machines may share a cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = ("model name", "flags", "Features")
    found = {line.split(":")[0].strip(): line for line in lines if line.startswith(names)}
    return " ".join((platform.machine(), platform.processor(), *found.values()))


def _compile(compiler: str, target: Path) -> None:
    """Compile aside and rename, since actors may do the same at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        aside = Path(folder) / target.name
        for flags in _ATTEMPTS:
            problem = _run(compiler, flags, aside)
            if not problem:
                break
        else:
            raise NoKernelsError(f"{compiler} fails ({problem})")
        aside.replace(target)


def _run(compiler: str, flags: tuple[str, ...], target: Path) -> str:
    """Run the compiler; return its first error, or nothing."""
    command = [compiler, *_flags(), *flags, *map(str, _SOURCES), "-o", str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"it took more than {_COMPILE_TIMEOUT_S:g} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in said if "error" in line), said[0])


def usable(*tensors: Tensor) -> bool:
    """Return whether the kernels can work on these: float32 or bfloat16 on a CPU."""
    kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
    known = [{("cpu", torch.float32)}, {("cpu", torch.bfloat16)}]
    return kinds in known and missing() is None


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel; tensors are passed as pointers to their memory, whole numbers as int64.

    The kernel gets torch's number of threads as its last argument.
    """
    function = getattr(library(), name)
    function.restype = None
    function(*map(_argument, arguments), ctypes.c_int(torch.get_num_threads()))


def number(name: str, *arguments: int) -> int:
    """Call a function of the kernels that computes a whole number."""
    function = getattr(library(), name)
    function.restype = ctypes.c_int64
    return int(function(*map(ctypes.c_int64, arguments)))


_scratch = threading.local()


def scratch(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return memory of this thread that later calls reuse: fresh pages cost as much as work."""
    memory: dict[str, Tensor] = _scratch.__dict__
    size = math.prod(shape) * dtype.itemsize
    if name not in memory or len(memory[name]) < size:
        memory[name] = torch.empty(size, dtype=torch.uint8)
    return memory[name][:size].view(dtype).view(shape)


def _argument(value: Tensor | int | float | None) -> ctypes._SimpleCData[object]:
    if value is None:
        return ctypes.c_void_p(None)  # type: ignore[return-value]
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())  # type: ignore[return-value]
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)  # type: ignore[return-value]
