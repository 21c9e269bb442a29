"""Python, packages, GPUs, number formats and compilers."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from rayff.doctor.check import CheckResult, fails, note, ok, one_line, slow

PACKAGES = ("torch", "torchvision", "ray", "pyarrow")
OPTIONAL = ("optuna", "mlflow", "wandb")
NVIDIA_DEVICE = Path("/dev/nvidiactl")


def versions() -> CheckResult:
    """Tell the versions of what matters, whether they fit, and whether they can be imported."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return fails(f"{', '.join(found)}, but no {name}", f"pip install {name}")
    if odd := misfits(("rayff", "torchvision", "ray"), PACKAGES):
        return fails(
            f"{', '.join(found)}: {'; '.join(odd)}", f"pip install -U {' '.join(PACKAGES)}"
        )
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that does not fit shows as any kind of error
            return fails(
                f"{name} cannot be imported ({one_line(error)})",
                f"pip install --force-reinstall {' '.join(PACKAGES)}",
            )
    return ok(", ".join(found))


def misfits(wanting: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """Return a clause for each package that another one wants in another version."""
    odd = []
    for name in wanting:
        for requirement in requirements(name):
            if requirement.name not in wanted or requirement.marker is not None:
                continue
            version = metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                odd.append(f"{name} wants {requirement.name} {requirement.specifier}")
    return odd


def requirements(name: str) -> list[Requirement]:
    """Return what a package says it needs; nothing for one that is not installed."""
    try:
        return [Requirement(text) for text in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []


def extras() -> CheckResult:
    """Tell which optional packages are here."""
    here = [name for name in OPTIONAL if importlib.util.find_spec(name) is not None]
    missing = [name for name in OPTIONAL if name not in here]
    return ok(
        "; ".join(
            f"{', '.join(names)} {where}"
            for names, where in ((here, "here"), (missing, "not, and only wanted by options"))
            if names
        )
    )


def precision() -> CheckResult:
    """Tell the number format that a training would take."""
    import torch

    from rayff.kernels.precision import default_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads = f"{torch.get_num_threads()} torch threads"
    what = "the GPU" if device.type == "cuda" else "the processor"
    if default_precision(device) == "bf16":
        return ok(f"bf16 by default: {what} has units for it; {threads}")
    return ok(f"fp32 by default: {what} has no units for bf16; {threads}")


def gpus() -> CheckResult:
    """Tell what GPUs torch sees, and why it sees none that are there."""
    import torch

    hidden, driver = os.environ.get("CUDA_VISIBLE_DEVICES"), nvidia_driver()
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{d.name} ({d.total_memory / 2**30:.0f} GiB)" for d in devices)
        return ok(f"{names}; torch for CUDA {torch.version.cuda}, driver {driver or 'unknown'}")
    if driver is None and not NVIDIA_DEVICE.exists():
        return ok("none here: layers compute on CPUs")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return note(
            f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}: layers compute on CPUs",
            "unset CUDA_VISIBLE_DEVICES to use them",
        )
    if torch.version.cuda is None:
        return fails(
            f"a GPU is here (driver {driver}), but torch {torch.__version__} is built for CPUs",
            "install torch for CUDA (https://pytorch.org/get-started), or use --device cpu",
        )
    return fails(
        f"torch for CUDA {torch.version.cuda} cannot use the GPU with driver {driver}",
        "update the driver, install torch for an older CUDA, or use --device cpu",
    )


def nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver, or None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def kernels() -> CheckResult:
    """Compile the kernels for CPUs, or take them from the cache, and load them."""
    from rayff.kernels import amx, native

    try:
        compiler = native.find_compiler()
    except native.NoKernelsError as error:
        return slow(
            f"{error}: torch computes what the compiled kernels would",
            "install g++ (apt-get install g++), or set CXX to a C++ compiler",
        )
    cached = native.library_file(compiler).exists()
    start = time.perf_counter()
    why = native.missing()
    took_s = time.perf_counter() - start
    if why is not None:
        return slow(
            f"the kernels are missing: {why}",
            "install another compiler and set CXX, or RAYFF_CACHE_DIR to a folder of your own "
            "from which programs may run",
        )
    how = "cached" if cached else f"compiled in {took_s:.1f} s"
    tiles = "" if amx.missing() else "; with the processor's tile units (AMX)"
    return ok(f"{how}, by {compiler}{tiles}")


def triton() -> CheckResult:
    """Compile a kernel for the GPU and run it, as the fast rule does."""
    import torch

    from rayff.kernels import gpu

    if not torch.cuda.is_available():
        return ok("not needed without a GPU")
    start = time.perf_counter()
    why = gpu.missing()
    if why is not None:
        return slow(
            f"the GPU's kernels are missing: {why}",
            "pip install triton, and a C compiler and Python's headers (apt-get install gcc "
            "python3-dev)",
        )
    return ok(f"the GPU's kernels run, after {time.perf_counter() - start:.1f} s")
