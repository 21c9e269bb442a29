"""The command `rayff bench data`: Time images that are streamed, against images in memory.

Writes JPEG images of noise as Parquet and as folders, and measures

1. images a second that are decoded: into memory by rayff, by torchvision's ImageFolder with a
   DataLoader, and, where it is installed, by `datasets` of Hugging Face; in an asked order on Ray,
   by rayff's readers and by Ray Data;
2. images a second of a training, streamed and in memory, in turns;
3. with --memory-limit, the memory of driver, readers and stages while a data set of ten times as
   many bytes is streamed in a control group that allows no more. It needs root, cgroups and that
   much of the disk, and draws the memory over time where --plot says so.

Examples:
  rayff bench data --images 2000 --repeats 1
  rayff bench data --image-size 64 --save bench-data.json
  rayff bench data --memory-limit 2 --plot memory.png
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from joblib import cpu_count
from PIL import Image

from rayff.bench.command import BenchCommand, benchmark
from rayff.bench.reading import rate_of, rates_on_ray
from rayff.bench.results import Results, in_turns
from rayff.bench.workload import completed
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.data.loading import data_options, load_task

CLASSES = 10
ROWS_A_GROUP = 1000
TIMES_THE_LIMIT = 10
"""Bytes of the files, as a multiple of the memory that is allowed."""
CGROUPS = Path("/sys/fs/cgroup")
KINDS = {"driver": "driver", "stages": "stages", "readers": "readers", "ray": "the rest of Ray"}
"""Processes whose memory is told, with their names in the plot."""
_DIFFERENT = 500
"""Images that are drawn; files hold them again and again."""


@dataclass(frozen=True, kw_only=True)
class DataCommand(BenchCommand):
    """The options."""

    images: int = 20_000
    """Training images."""
    pixels: int = 64
    """Pixels a side of the files."""
    image_size: int = 64
    """Pixels a side that they are brought to."""
    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    width: int = 20
    """Channels of the first layer."""
    stages: int = 1
    """Number of stages."""
    epochs: int = 2
    """Epochs of a training; the first is its warm-up."""
    repeats: int = 3
    """Rounds in which they take turns, and of which the median counts."""
    memory_limit: float | None = None
    """GiB that all processes of the third part may use together."""
    plot: str | None = None
    """PNG file for the memory over time."""


def jpegs(pixels: int) -> list[bytes]:
    """Return images of smooth noise, in their files."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_DIFFERENT):
        small = generator.integers(0, 256, (max(4, pixels // 4),) * 2 + (3,), dtype=np.uint8)
        image = Image.fromarray(small).resize((pixels, pixels), Image.Resampling.BICUBIC)
        target = io.BytesIO()
        image.save(target, "JPEG", quality=90)
        found.append(target.getvalue())
    return found


def write_parquet(folder: Path, files: Sequence[bytes], images: int) -> int:
    """Write a data set with so many training images; return the bytes of its files."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", images), ("validation", 500), ("test", 500)):
        path = folder / f"{split}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for first in range(0, count, ROWS_A_GROUP):
                rows = range(first, min(first + ROWS_A_GROUP, count))
                column = [{"bytes": files[row % len(files)], "path": None} for row in rows]
                labels = [row % CLASSES for row in rows]
                writer.write_table(pa.table([pa.array(column, kind), labels], schema=schema))
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


def write_folders(folder: Path, files: Sequence[bytes], images: int) -> None:
    """Write the training images as files, a folder a class."""
    for row in range(images):
        path = folder / f"{row % CLASSES}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[row % len(files)])


def training(command: DataCommand, folder: Path, **changes: Any) -> TrainConfig:
    """Return the training of the second and third part."""
    how = {
        "arch": command.arch,
        "width": command.width,
        "loss": "linear",
        "task": str(folder),
        "image_size": command.image_size,
        "stages": command.stages,
        "epochs": command.epochs,
        "logger": "none",
        **changes,
    }
    return TrainConfig(**how)


def rates(command: DataCommand, parquet: Path, folders: Path) -> dict[str, Callable[[], float]]:
    """Return what decodes all training images, by name; each returns images a second."""
    size, workers = command.image_size, cpu_count()

    def timed(count: Callable[[], int]) -> Callable[[], float]:
        return lambda: rate_of(count)

    def own() -> int:
        options = replace(data_options(training(command, parquet)), stream=False, cached=False)
        return sum(map(len, load_task(options).splits.values()))

    def torchvision() -> int:
        import torch
        from torchvision import datasets, transforms

        steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
        dataset = datasets.ImageFolder(str(folders), transforms.Compose(steps))
        loader = torch.utils.data.DataLoader(dataset, batch_size=128, num_workers=workers)
        return sum(len(labels) for _, labels in loader)

    found = {"rayff": timed(own), "torchvision ImageFolder, DataLoader": timed(torchvision)}
    try:
        import datasets as hugging_face
    except ImportError:
        return found

    def hugging() -> int:
        data = hugging_face.load_dataset(
            "parquet", data_files=str(parquet / "train.parquet"), split="train", streaming=True
        )
        data = data.cast_column("image", hugging_face.Image())
        number = 0
        for row in data:
            np.asarray(row["image"].convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
            number += 1
        return number

    return {**found, "datasets, streaming, one process": timed(hugging)}


def train_rate(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Train, and return images a second of the last epoch and its share of waiting."""
    from rayff.trainer import Trainer

    with TemporaryDirectory(prefix="run-", dir=folder) as run_dir:
        how = {**config.to_dict(), "run_dir": f"{run_dir}/run"}
        last = completed(Trainer(TrainConfig(**how), quiet=True).fit()).metrics[-1]
    return {"images_per_s": last.images_per_s, "data_wait": last.data_wait}


def measure(command: DataCommand, results: Results) -> None:
    """Fill in the tables."""
    with TemporaryDirectory(prefix="rayff-stream-") as name:
        folder, files = Path(name), jpegs(command.pixels)
        if command.memory_limit is not None:
            _memory(command, results, folder, files)
            return
        _throughput(command, results, folder, files)


def _throughput(
    command: DataCommand, results: Results, folder: Path, files: Sequence[bytes]
) -> None:
    parquet, folders = folder / "parquet", folder / "folders"
    size = write_parquet(parquet, files, command.images)
    write_folders(folders, files, command.images)
    kind = f"{command.images:,} JPEG of {command.pixels} pixels, {size / 2**20:.0f} MiB"
    works = rates(command, parquet, folders) | rates_on_ray(parquet, command.image_size)
    decoded = in_turns(works, command.repeats)
    per_core = [
        {"reader": name, "images_per_s": found, "per_core": round(median(found) / cpu_count())}
        for name, found in decoded.items()
    ]
    results.table(f"{kind}: decoded at {command.image_size}", per_core, " ".join(per_core[0]))
    trainings = {
        name: lambda stream=stream: train_rate(training(command, parquet, stream=stream), folder)
        for name, stream in (("in memory", False), ("streamed", True))
    }
    trained = in_turns(trainings, command.repeats, warm_up=False)
    base = median(found["images_per_s"] for found in trained["in memory"])
    rows = []
    for name, found in trained.items():
        speeds = [each["images_per_s"] for each in found]
        waits = [each["data_wait"] for each in found]
        rows.append(
            {
                "images": name,
                "images_per_s": speeds,
                "waiting_share": waits,
                "against": median(speeds) / base,
            }
        )
    title = f"{command.arch} of width {command.width}, linear, {command.stages} stages"
    results.table(f"{title}: trained", rows, " ".join(rows[0]))
    results.figures = {"decoded": decoded, "trained": trained}


def _memory(command: DataCommand, results: Results, folder: Path, files: Sequence[bytes]) -> None:
    assert command.memory_limit is not None
    limit = int(command.memory_limit * 2**30)
    each = sum(map(len, files)) / len(files)
    images = int(TIMES_THE_LIMIT * limit / each) + ROWS_A_GROUP
    size = write_parquet(folder / "parquet", files, images)
    config = training(command, folder / "parquet", stream=True, epochs=1, chunk=4)
    group = Cgroup("rayff-bench-data", limit)
    try:
        program = _child(config, folder / "run", group)
        samples = list(_samples(program))
        most = group.most_bytes
    finally:
        group.remove()
    if program.returncode:
        raise UserError(
            f"the training in {command.memory_limit:g} GiB failed with exit code "
            f"{program.returncode}: give more --memory-limit"
        )
    what = f"{size / 2**30:.1f} GiB of Parquet, {images:,} images of {command.pixels} pixels"
    tell_memory(results, samples, f"{what}, in {command.memory_limit:g} GiB")
    results.notes.append(
        f"most memory of the control group, with its file cache: {most / 2**30:.2f} GiB; unique "
        "memory (USS) above"
    )
    results.figures = {"samples": samples, "most_bytes": most, "file_bytes": size}
    if command.plot is not None:
        _plot(command, samples, size)


def tell_memory(results: Results, samples: Sequence[Mapping[str, float]], title: str) -> None:
    """Add a table of the medians of eight parts of the time."""
    rows = []
    for part in np.array_split(np.arange(len(samples)), min(8, len(samples))):
        inside = [samples[index] for index in part]
        row: dict[str, Any] = {"until_s": inside[-1]["at_s"]}
        for kind in KINDS:
            row[f"{kind}_bytes"] = median(sample[kind] for sample in inside)
        rows.append(row)
    results.table(f"{title}: medians of each part", rows, " ".join(rows[0]))


class Cgroup:
    """A control group that limits memory, of version 1 or 2.

    Raises:
        UserError: this process may not make one.
    """

    def __init__(self, name: str, limit: int) -> None:
        first = (CGROUPS / "memory").is_dir()
        self.folder = (CGROUPS / "memory" if first else CGROUPS) / name
        files = ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        self._limit, self._most = files if first else ("memory.max", "memory.peak")
        try:
            self.folder.mkdir(exist_ok=True)
            (self.folder / self._limit).write_text(str(limit))
        except OSError as error:
            raise UserError(
                f"--memory-limit: no control group can be made ({error}): run as root, on Linux, "
                "or leave it out"
            ) from error

    @property
    def most_bytes(self) -> int:
        """The most memory that was used."""
        return int((self.folder / self._most).read_text())

    def enter(self) -> None:
        """Move this process, and those that it starts, into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """Remove the group, once its processes are gone."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.folder.rmdir()
            except OSError:
                time.sleep(0.2)
            else:
                return


def _child(config: TrainConfig, run_dir: Path, group: Cgroup) -> subprocess.Popen[bytes]:
    """Start the training as a command in the group."""
    flags = ["--backend=ray", f"--run-dir={run_dir}", "--stream"]
    for name in ("arch", "width", "loss", "task", "image_size", "stages", "epochs", "chunk"):
        flags.append(f"--{name.replace('_', '-')}={getattr(config, name)}")
    return subprocess.Popen(
        [sys.executable, "-m", "rayff.train", *flags, "--logger=none"],
        stdout=subprocess.DEVNULL,
        preexec_fn=group.enter,
    )


def _samples(program: subprocess.Popen[bytes]) -> Iterator[dict[str, float]]:
    """Yield the memory of each kind of process, every few seconds."""
    start = time.monotonic()
    process = psutil.Process(program.pid)
    while program.poll() is None:
        found = {"at_s": time.monotonic() - start, **dict.fromkeys(KINDS, 0.0)}
        with_driver = [process, *process.children(recursive=True)]
        for each in with_driver:
            try:
                title, uss = " ".join(each.cmdline()), each.memory_full_info().uss
            except psutil.Error:
                continue
            kind = "ray"
            if each.pid == program.pid:
                kind = "driver"
            elif "StageActor" in title:
                kind = "stages"
            elif title.startswith("ray::"):
                kind = "readers"
            found[kind] += uss
        yield found
        time.sleep(2.0)


def _plot(command: DataCommand, samples: Sequence[Mapping[str, float]], size: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    times = [sample["at_s"] for sample in samples]
    for kind, name in KINDS.items():
        axes.plot(times, [sample[kind] / 2**30 for sample in samples], label=name)
    assert command.memory_limit is not None
    axes.axhline(command.memory_limit, color="black", ls="--", lw=1)
    axes.set_title(
        f"{size / 2**30:.0f} GiB of Parquet in {command.memory_limit:g} GiB of memory", loc="left"
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("unique memory (GiB)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center right")
    figure.savefig(str(command.plot), dpi=150)


main = benchmark(DataCommand, measure)
