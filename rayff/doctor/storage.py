"""Checks of folders, disks, remote storage and data."""

import os
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from rich.filesize import decimal

from rayff.config.train_config import TrainConfig
from rayff.doctor.check import CheckResult, fail, ok, one_line, slow

CHECKPOINT_BYTES = 367_000_000
"""Of `resnet`: 30.6 million weights and Adam's two moments in float32."""


def cache() -> CheckResult:
    """Check that the cache of compiled kernels and their timings can be written."""
    from rayff.config.environment import cache_dir

    folder = cache_dir()
    if not _writable(folder):
        return slow(f"{folder} cannot be written", "set RAYFF_CACHE_DIR to a folder of yours")
    return ok(str(folder))


def run_dir(path: str) -> CheckResult:
    """Check that a run directory can be written there and has room for checkpoints."""
    if not _writable(Path(path)):
        return fail(f"{path} cannot be written", "set --run-dir to a folder of yours")
    free = psutil.disk_usage(str(_existing(Path(path)))).free
    text = f"{decimal(free)} free; a checkpoint of resnet takes {decimal(CHECKPOINT_BYTES)}"
    if free < 3 * CHECKPOINT_BYTES:  # two are kept while the next one is written
        return fail(text, "free space there, or set --run-dir to another disk")
    return ok(text)


def ray_temp_dir() -> CheckResult:
    """Check the disk of Ray's logs and spilled objects."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    usage = psutil.disk_usage(str(_existing(folder)))
    text = f"{decimal(usage.free)} of {decimal(usage.total)} free in {folder}"
    if usage.free < 0.05 * usage.total:
        remedy = "delete old folders in /tmp/ray, or set RAY_TMPDIR to another disk"
        return fail(f"{text}: Ray creates no objects when less than 5% is", remedy)
    return ok(text)


def _writable(folder: Path) -> bool:
    return os.access(_existing(folder), os.W_OK | os.X_OK)  # no file is executable


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def storage(storage_path: str | None) -> CheckResult | None:
    """Write, read and delete a file at --storage-path."""
    import pyarrow as pa

    from rayff.data.locations import file_system

    if storage_path is None:
        return None
    files, folder = file_system(storage_path, "--storage-path")
    name, content = f"{folder.rstrip('/')}/.rayff-{uuid.uuid4().hex}", os.urandom(1_000_000)
    start, step = time.perf_counter(), "written"
    try:
        files.create_dir(folder)
        with files.open_output_stream(name) as stream:
            stream.write(content)
        step = "read back"
        with files.open_input_stream(name) as stream:
            if stream.read() != content:
                raise OSError("its content has changed")
        step = "deleted"
        files.delete_file(name)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError, pa.ArrowException):
            files.delete_file(name)
        text = f"{storage_path}: a file cannot be {step} ({one_line(error)})"
        return fail(text, "check the name, AWS_ACCESS_KEY_ID and such, and their permissions")
    took_s = time.perf_counter() - start
    return ok(f"1 MB written, read back and deleted in {took_s:.1f} s")


def data(config: TrainConfig) -> CheckResult:
    """Load the data as a training does."""
    from rayff.data.loading import data_options, load_task

    loaded = load_task(data_options(config))
    return ok(f"{loaded.name}: {'; '.join(loaded.describe()).removeprefix('data: ')}")
