"""python -m rayff.doctor: tells what of this machine or cluster would be slow or fail."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.text import printable
from rayff.doctor.check import Check, CheckResult, examine, fails, one_line
from rayff.engine.stop import StopRequest

DESCRIPTION = """\
Look at Ray, GPUs, compilers, precision and storage here, and tell what would be slow or fail.

Each line is a check: ok, note (something optional is missing), slow or fails, with the remedy
below. Joins the cluster that RAY_ADDRESS names, and else starts a local Ray and stops it again.
The exit code is 1 where something fails, and else 0.

Examples:
  python -m rayff.doctor
  python -m rayff.doctor --task mnist --data-dir DATA --storage-path s3://bucket/runs
  python -m rayff.doctor --no-ray --json
"""

STYLES = {"ok": "green", "note": "cyan", "slow": "yellow", "fails": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """The flags."""

    task: str = "digits"
    """Data to look for: a task's name, or a folder of image Parquet."""
    data_dir: str | None = None
    """Folder that holds the task's data."""
    run_dir: str = "runs"
    """Folder that is to hold run directories."""
    storage_path: str | None = None
    """Folder or URI to try as the storage of copies; a small file is written, read and deleted."""
    no_ray: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start no Ray and join no cluster."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a JSON list with one object a check."""


def checks(command: DoctorCommand) -> Generator[tuple[str, Check], None, None]:
    """Yield the checks by name, in the order in which they are done."""
    from rayff.doctor import machine, software
    from rayff.doctor import storage as places

    yield "versions", software.versions
    yield "optional packages", software.extras
    yield "CPUs", machine.cpus
    yield "niceness", machine.niceness
    yield "memory", machine.memory
    yield "shared memory", machine.shared_memory
    yield "open files", machine.open_files
    yield "precision", software.precision
    yield "GPUs", software.gpus
    yield "GPU compiler", software.triton
    yield "cache", places.cache
    yield "compiled kernels", software.kernels
    yield "disk of runs", lambda: places.run_disk(Path(command.run_dir))
    yield "disk of Ray", places.ray_disk
    data_dir = None if command.data_dir is None else Path(command.data_dir)
    yield "data", lambda: places.data(command.task, data_dir)
    storage_path = command.storage_path
    if storage_path is not None:
        yield "storage", lambda: places.storage(storage_path)
    if not command.no_ray:
        yield from _ray_checks()


def _ray_checks() -> Iterator[tuple[str, Check]]:
    try:
        from rayff.doctor.cluster import ray_checks
    except Exception as error:  # whatever a library that does not fit raises
        found = fails(
            f"the cluster's part cannot be imported ({one_line(error)})",
            "pip install --force-reinstall 'ray[train,tune]' torch",
        )
        yield "Ray", lambda: found
    else:
        yield from ray_checks()


def main(args: Sequence[str]) -> int:
    """Look at everything and tell; return 1 where something fails, or 128 plus a signal's number.

    A signal waits for the check that is under way: Ray breaks when its start is interrupted.
    """
    command = parse(DoctorCommand, module="rayff.doctor", description=DESCRIPTION, args=args)
    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False)
    found = []
    with (
        StopRequest(lambda name: errors.print(f"{name}: stopping behind this check")) as stop,
        closing(checks(command)) as to_do,
    ):
        for name, result in examined(to_do, errors if command.json else console):
            if stop.signum is not None:
                return 128 + stop.signum
            found.append((name, result))
            if not command.json:
                show(name, result, console)
    if command.json:
        print(json.dumps([{"check": n, **dataclasses.asdict(f)} for n, f in found], indent=1))
    else:
        show_summary([result for _, result in found], console)
    return int(any(result.state == "fails" for _, result in found))


def examined(
    to_do: Iterable[tuple[str, Check]], console: Console
) -> Iterator[tuple[str, CheckResult]]:
    """Do the checks, and show on a terminal which one takes its time."""
    for name, check in to_do:
        with console.status(name) if console.is_terminal else nullcontext():
            result = examine(check)
        yield name, result


def show(name: str, result: CheckResult, console: Console) -> None:
    """Print a line of what was found, and one of what to do."""
    line = Text(f"{result.state:<6}", STYLES[result.state])
    line.append(f"{name}: ", "bold").append(printable(result.found), "default")
    console.print(line)
    if result.remedy is not None:
        console.print(Text(f"      -> {printable(result.remedy)}"))


def show_summary(found: Sequence[CheckResult], console: Console) -> None:
    """Print how much there is to do."""
    count = Counter(result.state for result in found)
    fail, slow = count["fails"], count["slow"]
    what = ", ".join(
        f"{number} would {how}" for number, how in ((fail, "fail"), (slow, "be slow")) if number
    )
    text = f"of {len(found)} checks, {what}" if what else f"all {len(found)} checks are well"
    console.print(Text(text, STYLES["fails" if fail else "slow" if slow else "ok"]))


if __name__ == "__main__":
    run_command(main)
