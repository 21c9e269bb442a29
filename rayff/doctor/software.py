"""Checks of packages, compilers and compiled kernels."""

import importlib
import importlib.util
import platform
import time
from importlib import metadata

from packaging.requirements import Requirement

from rayff.doctor.check import CheckResult, fail, note, ok, one_line, slow

PACKAGES = ("torch", "torchvision", "ray", "pyarrow")
OPTIONAL_PACKAGES = ("optuna", "mlflow", "wandb")


def versions() -> CheckResult:
    """Check that the packages fit together and can be imported."""
    unmet = [*unmet_requirements("rayff"), *unmet_requirements("torchvision")]
    unmet += unmet_requirements("ray")
    remedy = f"pip install -U --force-reinstall {' '.join(PACKAGES)}"
    if unmet:
        return fail("; ".join(unmet), remedy)
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # packages that do not fit raise anything
            return fail(f"{name} cannot be imported: {one_line(error)}", remedy)
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ok(", ".join([f"Python {platform.python_version()}", *found]))


def unmet_requirements(package: str, extra: str = "") -> list[str]:
    """Return a clause for each requirement of a package, with an extra, that is not met."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:  # rayff where it is not installed, as in a job
        return []
    unmet = []
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            unmet.append(f"{package} needs {wanted}, installed is {version or 'none'}")
    return unmet


def optional_packages() -> CheckResult:
    """Check which optional packages are installed."""
    missing = [name for name in OPTIONAL_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return note(f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}")
    return ok(", ".join(OPTIONAL_PACKAGES))


def triton_kernels() -> CheckResult | None:
    """Compile the Triton kernels and run one."""
    import torch

    from rayff.kernels import gpu

    if not torch.cuda.is_available():
        return None
    start = time.perf_counter()
    if why := gpu.missing():
        remedy = "pip install triton; apt-get install gcc python3-dev"
        return slow(f"not usable, torch is slower: {why}", remedy)
    return ok(f"ready after {time.perf_counter() - start:.1f} s")


def cpp_kernels() -> CheckResult:
    """Compile the C++ kernels, or load them from the cache."""
    from rayff.kernels import amx, native

    start = time.perf_counter()
    if why := native.missing():
        remedy = "apt-get install g++, set CXX to a compiler, or RAYFF_CACHE_DIR to another folder"
        return slow(f"not usable, torch is slower: {why}", remedy)
    text = f"ready after {time.perf_counter() - start:.1f} s"
    return ok(text if amx.missing() else f"{text}, with AMX")
