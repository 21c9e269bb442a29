"""Folders, disks, storages and data."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from rayff.doctor.check import CheckResult, fails, ok, one_line, refused, size, slow

PROBE_BYTES = 2**20
FULL_SHARE = 0.95
"""Of its disk, from which on Ray makes no more room for objects there."""


def cache() -> CheckResult:
    """Tell whether the cache of timings and compiled kernels can be written."""
    from rayff.kernels.native import cache_dir

    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return slow(
            f"{folder} cannot be written ({error.strerror}): every run times its layers again, "
            "without compiled kernels",
            "set RAYFF_CACHE_DIR to a folder of your own",
        )
    return ok(str(folder))


def run_disk(run_dir: Path) -> CheckResult:
    """Tell whether run directories can be written there, and have room for checkpoints."""
    folder = existing(run_dir)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return fails(
            f"{folder} cannot be written ({error.strerror})",
            "name a folder of your own as --run-dir",
        )
    free, needed = psutil.disk_usage(str(folder)).free, checkpoint_bytes("resnet")
    found = f"{size(free)} free in {folder}; a checkpoint of resnet takes {size(needed)}"
    if free < 3 * needed:  # two are kept, and one is being written
        return fails(found, "free space, or name a folder on another disk as --run-dir")
    return ok(found)


def checkpoint_bytes(arch: str) -> int:
    """Return about what a checkpoint takes: weights and Adam's two moments, in float32."""
    from rayff.models.zoo import architecture

    layers = architecture(arch, num_classes=10, image_channels=3).layers
    return 3 * 4 * sum(layer.num_weights for layer in layers)


def ray_disk() -> CheckResult:
    """Tell whether the disk of Ray's own files has room."""
    folder = existing(Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()))
    usage = psutil.disk_usage(str(folder))
    found = f"{size(usage.free)} of {size(usage.total)} free in {folder} for Ray's files"
    if usage.free < (1 - FULL_SHARE) * usage.total:
        return fails(
            f"{found}: Ray makes no objects on a disk that is {FULL_SHARE:.0%} full",
            "delete old folders in /tmp/ray, or set RAY_TMPDIR to a folder on another disk",
        )
    return ok(found)


def existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def storage(storage_path: str) -> CheckResult:
    """Write, read and delete a file in the storage of copies of run directories."""
    import pyarrow as pa

    from rayff.runs.storage import file_system

    files, folder = file_system(storage_path)
    name, data = f"{folder.rstrip('/')}/.rayff-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    start, step = time.perf_counter(), "written"
    try:
        files.create_dir(folder)
        with files.open_output_stream(name) as out:
            out.write(data)
        step = "read"
        with files.open_input_stream(name) as stream:
            same = stream.read() == data
        step = "deleted"
        files.delete_file(name)
    except (OSError, pa.ArrowException) as error:
        if step == "read":
            with suppress(OSError, pa.ArrowException):
                files.delete_file(name)
        return fails(
            f"{storage_path}: a file cannot be {step} ({one_line(error)})",
            "check its name, your keys (AWS_ACCESS_KEY_ID and such) and what they may do",
        )
    if not same:
        return fails(f"{storage_path}: a file comes back changed", "use another storage")
    took_s = time.perf_counter() - start
    return ok(f"{storage_path}: {size(len(data))} written, read and deleted in {took_s:.1f} s")


def data(task: str, data_dir: Path | None) -> CheckResult:
    """Read the task's data as a training does."""
    from rayff.config.errors import UserError
    from rayff.data.tasks import load_task

    try:
        loaded = load_task(task, data_dir=data_dir)
    except UserError as error:
        return refused(error)
    sizes = ", ".join(f"{len(images):,} {split}" for split, images in loaded.splits.items())
    return ok(f"{loaded.name}: {sizes} images of {loaded.num_classes} classes")
