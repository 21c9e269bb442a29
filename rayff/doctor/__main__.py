"""The command `rayff doctor`: checks the machine, its software, storage and Ray."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.text import printable
from rayff.config.train_config import Resize, TrainConfig
from rayff.console.outlet import ResultConsole
from rayff.doctor import machine, software, storage
from rayff.doctor.check import Check, CheckResult, fail, one_line, run_check
from rayff.engine.stop import StopRequest

DESCRIPTION = """\
Check what would be slow or fail in a training: Ray, GPUs, compilers, storage, data.

Examples:
  rayff doctor
  rayff doctor --task mnist --data-dir DATA --storage-path s3://bucket/runs
  rayff doctor --no-ray --json

Notes:
- A check is ok, note (something optional is missing), slow or fail, and says
  the remedy. The exit code is 1 when a check fails, else 0.
- Joins the cluster that RAY_ADDRESS names. Without it, starts a local Ray
  instance and stops it again.
"""

STYLES = {"ok": "green", "note": "cyan", "slow": "yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """The options."""

    task: str = "digits"
    """Data set to load: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder of a named task's data."""
    image_size: int | None = None
    """Pixels a side that the images are brought to. Default: 32."""
    resize: Resize = "crop"
    """What becomes of images that are not square, as in training."""
    image_column: str | None = None
    """Column that holds the images, in tables. Default: the one that fits."""
    label_column: str | None = None
    """Column that holds the classes, in tables. Default: the one that fits."""
    run_dir: str = "runs"
    """Folder for run directories."""
    storage_path: str | None = None
    """Folder or URI for copies of runs; a small file is written, read and deleted there."""
    no_ray: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start no Ray and join no cluster."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a JSON list with an object per check."""

    @property
    def data(self) -> TrainConfig:
        """A run that reads the data."""
        names = ("task", "data_dir", "image_size", "resize", "image_column", "label_column")
        return TrainConfig(**{name: getattr(self, name) for name in names})


def checks(command: DoctorCommand, stack: ExitStack) -> dict[str, Check]:
    """Return the checks by name, in the order to run them.

    Args:
        command: the flags.
        stack: takes the connection to Ray.
    """
    table: dict[str, Check] = {
        "versions": software.versions,
        "optional packages": software.optional_packages,
        "CPUs": machine.cpus,
        "niceness": machine.niceness,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "precision": machine.precision,
        "GPUs": machine.gpus,
        "Triton kernels": software.triton_kernels,
        "cache": storage.cache,
        "C++ kernels": software.cpp_kernels,
        "run directory": partial(storage.run_dir, command.run_dir),
        "Ray's temp folder": storage.ray_temp_dir,
        "data": partial(storage.data, command.data),
        "storage": partial(storage.storage, command.storage_path),
    }
    if command.no_ray:
        return table
    try:
        from rayff.doctor import cluster
    except Exception as error:  # a broken installation of Ray raises anything
        return table | {"Ray": partial(fail, f"cannot be imported: {one_line(error)}")}
    return table | {
        "Ray token": cluster.token,
        "job submission": cluster.job_submission,
        "Ray": partial(cluster.connect, stack),
        "nodes": cluster.node_resources,
        "node versions": cluster.node_versions,
        "GPUs of nodes": cluster.node_gpus,
    }


def main(args: Sequence[str]) -> int:
    """Run all checks; return 1 when one fails, 128 plus its number after a signal, else 0.

    A signal waits for the check that is running: Ray breaks when its start is interrupted.
    """
    command = parse(DoctorCommand, module="rayff.doctor", description=DESCRIPTION, args=args)
    console = ResultConsole(stderr=command.json, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # a line per result, for grep
    results = {}
    with (
        StopRequest(lambda name: console.print(f"{name}: stopping after this check")) as stop,
        ExitStack() as stack,
    ):
        for name, check in checks(command, stack).items():
            with console.status(name):
                result = run_check(check)
            if stop.signum is not None:
                return 128 + stop.signum
            if result is not None:
                results[name] = result
                if not command.json:
                    show(name, result, console)
    counts = Counter(result.state for result in results.values())
    if command.json:
        objects = [{"check": n} | dataclasses.asdict(r) for n, r in results.items()]
        print(json.dumps(objects, indent=1))
    else:
        bad = ", ".join(f"{counts[state]} {state}" for state in ("fail", "slow") if counts[state])
        console.print(f"{len(results)} checks: {bad or 'all well'}")
    return int(counts["fail"] > 0)


def show(name: str, result: CheckResult, console: Console) -> None:
    """Print a result, with its remedy below."""
    text = result.text if result.remedy is None else f"{result.text}\n-> {result.remedy}"
    row = Table.grid("", "", "", padding=(0, 1))
    row.columns[0].width, row.columns[1].width = 4, 17
    row.add_row(
        Text(result.state, STYLES[result.state]), Text(name, "bold"), Text(printable(text))
    )
    console.print(row)


if __name__ == "__main__":
    run_command(main)
