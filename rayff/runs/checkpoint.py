"""Checkpoints: one safetensors file a layer, and a small JSON manifest written last.

A checkpoint is written aside and renamed when it is whole. It knows layers by their global
number and nothing of stages, so a run resumes on any number of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rayff.config.errors import UserError
from rayff.learning.readout import Readouts
from rayff.models.architecture import Architecture
from rayff.runs.files import write_atomically, write_durably
from rayff.runs.readout_json import readouts_from_json, readouts_to_json

FORMAT = 1
MANIFEST = "manifest.json"
_SEAL = "sha256"
"""Name in a manifest of the digest of all else in it."""
_NAME = re.compile(r"step-(\d{8,})")
_FILE = re.compile(r"[a-z][a-z0-9.-]*")


class DamagedError(UserError):
    """A checkpoint is not as it was written; the one before it may be."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Position of a run: what resumption needs besides the layers."""

    epoch: int = 0
    """Epochs that are complete, evaluation included."""
    batch: int = 0
    """Batches of the epoch under way."""
    images: int = 0
    """Training images of the epoch under way."""
    loss_sums: tuple[float, ...] = ()
    """Sum over those images of each layer's loss."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of every layer at the same batch."""

    step: int
    progress: Progress
    states: Mapping[int, NDArray[np.uint8]]
    """The bytes of each layer's safetensors file, by global number."""
    readouts: Readouts | None = None
    """Of the model that belongs to it."""


class CheckpointStore:
    """The folder of a run's checkpoints.

    Args:
        directory: `checkpoints/` of the run directory.
        architecture: the whole network.
        seed: the run's seed.
        keep: how many checkpoints to keep.
        num_losses: losses of the network; by default one a layer.
        data: fingerprint of the run's data.
    """

    def __init__(
        self,
        directory: Path,
        architecture: Architecture,
        *,
        seed: int,
        keep: int,
        num_losses: int | None = None,
        data: str | None = None,
    ) -> None:
        self.directory = directory
        self.architecture = architecture
        self.seed = seed
        self.keep = keep
        self.num_losses = num_losses or len(architecture)
        self.data = data

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and return its folder; older ones beyond `keep` are deleted.

        Raises:
            OSError: the disk is full or gone; nothing half-written stays, older ones do.
        """
        target = self.directory / f"step-{checkpoint.step:08d}"
        aside = self.directory / f".{target.name}.partial"
        self.directory.mkdir(parents=True, exist_ok=True)
        position = _position(checkpoint)
        if target.exists():  # the same step of the same run has the same layers
            _write_position(target / MANIFEST, position)
            return target
        for cut_short in self.directory.glob(".step-*.partial"):
            shutil.rmtree(cut_short, ignore_errors=True)
        try:
            aside.mkdir()
            files = {}
            for index, state in sorted(checkpoint.states.items()):
                name = f"layer-{index:03d}.safetensors"
                write_durably(aside / name, state.data)
                files[str(index)] = {
                    "file": name,
                    "sha256": hashlib.sha256(state.data).hexdigest(),
                }
            manifest = {
                "format": FORMAT,
                "step": checkpoint.step,
                "seed": self.seed,
                "data": self.data,
                "architecture": self.architecture.to_dict(),
                **position,
                "layers": files,
            }
            write_durably(aside / MANIFEST, _sealed(manifest))
            aside.rename(target)
            _sync(self.directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        for old in self.list()[: -self.keep]:
            gone = old.rename(old.with_name(f".{old.name}.partial"))  # never seen half deleted
            shutil.rmtree(gone)
        return target

    def list(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return complete_checkpoints(self.directory)

    def read_latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none yet.

        Raises:
            UserError: it is damaged, or of another architecture or seed.
        """
        found = self.list()
        if not found:
            return None
        try:
            return self.read(found[-1])
        except DamagedError as error:
            remedy = (
                f"delete {found[-1]} to resume from {found[-2].name}"
                if found[1:]
                else "start a new --run-dir"
            )
            raise DamagedError(f"{error}; {remedy}") from error

    def read(self, path: Path) -> Checkpoint:
        """Read and check one checkpoint."""
        manifest = _read_manifest(path / MANIFEST)
        was, now = manifest["architecture"], self.architecture
        if was != now:
            raise UserError(
                f"{path} is a checkpoint of another architecture ({was.name!r} with {len(was)} "
                f"layers and {was.num_classes} classes; this run's is {now.name!r} with "
                f"{len(now)} and {now.num_classes}): resume with the architecture and task it "
                "was made with"
            )
        if manifest["seed"] != self.seed:
            raise UserError(f"{path} was trained with --seed {manifest['seed']}: use the same")
        if manifest["data"] != self.data and None not in (manifest["data"], self.data):
            raise UserError(
                f"{path} was trained on other data: labels, images or classes of the task have "
                "changed since; restore them, or start a new --run-dir"
            )
        progress = manifest["progress"]
        if (
            path.name != f"step-{manifest['step']:08d}"
            or bool(progress.batch) != bool(progress.images)
            or len(progress.loss_sums) != (self.num_losses if progress.images else 0)
        ):
            raise DamagedError(f"{path / MANIFEST} is damaged: its numbers do not fit")
        states = {
            layer.index: _read_layer(path, layer.index, manifest["layers"])
            for layer in self.architecture.layers
        }
        try:
            readouts = readouts_from_json(manifest["readouts"], self.num_losses, now.num_classes)
        except ValueError as error:
            raise DamagedError(f"{path / MANIFEST} is damaged: {error}") from error
        return Checkpoint(
            step=manifest["step"], progress=progress, states=states, readouts=readouts
        )


def complete_checkpoints(directory: Path) -> list[Path]:
    """Return the folders of the complete checkpoints in a folder, oldest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if checkpoint_step(path.name) >= 0]
    return sorted(found, key=lambda path: checkpoint_step(path.name))


def checkpoint_step(name: str) -> int:
    """Return the step of a complete checkpoint's folder, or -1 where it is none."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


def _position(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what of a manifest may change while the layers stay: an evaluation trains none."""
    return {
        "progress": dataclasses.asdict(checkpoint.progress),
        "readouts": readouts_to_json(checkpoint.readouts),
    }


def _write_position(path: Path, position: dict[str, Any]) -> None:
    """Write a manifest anew where its run stands elsewhere."""
    before = json.loads(path.read_bytes())
    manifest = json.loads(json.dumps({**before, **position}))
    if before != manifest:
        write_atomically(path, _sealed(manifest))


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest with a digest of its content."""
    content = {name: value for name, value in manifest.items() if name != _SEAL}
    return json.dumps({**content, _SEAL: _digest(content)}, indent=1).encode()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and give back its parts with their types checked."""
    try:
        _check_own_file(path)
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing: the checkpoint is not whole") from None
    except DamagedError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedError(f"{path} is no manifest of a checkpoint: {error}") from error
    try:
        version = data["format"]
        if version == FORMAT:
            seal = data.pop(_SEAL, None)  # older ones have none
            progress = data["progress"]
            manifest = {
                "step": _count(data["step"]),
                "seed": _count(data["seed"]),
                "data": data.get("data"),
                "architecture": Architecture.from_dict(data["architecture"]),
                "progress": Progress(
                    epoch=_count(progress["epoch"]),
                    batch=_count(progress["batch"]),
                    images=_count(progress["images"]),
                    loss_sums=tuple(_finite(value) for value in progress["loss_sums"]),
                ),
                "layers": {
                    int(index): (str(entry["file"]), str(entry["sha256"]))
                    for index, entry in data["layers"].items()
                },
                "readouts": data.get("readouts"),
            }
            if seal not in (None, _digest(data)):
                raise ValueError("its content is not what was written")
            return manifest
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is no manifest of a checkpoint: {error!r}") from error
    raise UserError(
        f"{path} has format {version!r} and this version reads {FORMAT}: resume with the version "
        "that wrote it"
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _read_layer(
    directory: Path, index: int, layers: Mapping[int, tuple[str, str]]
) -> NDArray[np.uint8]:
    """Read one layer's file and check it against the manifest."""
    if index not in layers:
        raise DamagedError(f"{directory / MANIFEST} names no file for layer {index}")
    name, sha256 = layers[index]
    if not _FILE.fullmatch(name):
        raise DamagedError(
            f"{directory / MANIFEST} names {name!r} for layer {index}, which is not a "
            "file of the checkpoint itself"
        )
    path = directory / name
    try:
        _check_own_file(path)
        state = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DamagedError(
            f"{path}, which the manifest names for layer {index}, cannot be read: {error.strerror}"
        ) from error
    if hashlib.sha256(state.data).hexdigest() != sha256:
        raise DamagedError(
            f"{path} is damaged: its {len(state)} bytes are not those that were written"
        )
    try:
        with safe_open(path, framework="np"):  # reads the header alone
            pass
    except SafetensorError as error:
        raise DamagedError(f"{path} is no safetensors file: {error}") from error
    return state


def _check_own_file(path: Path) -> None:
    """Raise where a file of a checkpoint is a link, a pipe or a device."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise DamagedError(f"{path} is a link: a checkpoint holds its files itself")
    if not stat.S_ISREG(mode):
        raise DamagedError(f"{path} cannot be read: it is no file")


def _sync(directory: Path) -> None:
    """Wait until the disk has the names in a folder, as far as the system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
