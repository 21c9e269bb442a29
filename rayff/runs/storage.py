"""The copy of a run directory in a storage: a folder, a shared mount, S3 or whatever has a URI.

The run directory on the driver's disk comes first; the copy follows it in the background. A
storage may know no renaming, so a checkpoint is whole there once its manifest is, which is sent
last and deleted first. Stages send their snapshots to the driver, so that no other node needs the
storage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rayff.config.errors import UserError
from rayff.data.locations import file_system, unreachable
from rayff.runs.checkpoint import MANIFEST, checkpoint_step, complete_checkpoints
from rayff.runs.record import LOG, RECORD
from rayff.runs.run_directory import CONFIG, is_passing

CHECKPOINTS = "checkpoints"
FLAG = "--storage-path"


class Storage:
    """Where the copy of one run directory is kept.

    Args:
        run_dir: the run directory on the driver's disk.
        storage_path: folder or URI that holds the copies of run directories; this run's has the
            name of its directory.

    Raises:
        UserError: no file system for it.
    """

    def __init__(self, run_dir: Path, storage_path: str) -> None:
        self.run_dir = run_dir
        self.name = f"{storage_path.partition('?')[0].rstrip('/')}/{run_dir.name}"
        self.files, self.root = file_system(storage_path, FLAG)
        self.folder = f"{self.root.rstrip('/')}/{run_dir.name}"

    def check_new(self) -> None:
        """Raise a UserError where the storage is none, or has a run of that name."""
        self._check_folder()
        if self._has(CONFIG):
            raise UserError(
                f"{self.name} holds a run already: add --resume to continue it, or name another "
                "--run-dir"
            )

    def push(self, keep: int) -> None:
        """Bring the copy up to date; the newest `keep` checkpoints stay.

        Raises:
            OSError: the storage failed; what it holds is still a whole run.
        """
        newest = complete_checkpoints(self.run_dir / CHECKPOINTS)[-1:]
        for folder in newest:
            there = f"{CHECKPOINTS}/{folder.name}"
            if folder.name not in self._checkpoints():
                for path in sorted(folder.iterdir()):
                    if path.name != MANIFEST:
                        self._send(f"{there}/{path.name}")
            self._send(f"{there}/{MANIFEST}")
        for path in sorted(self.run_dir.rglob("*")):
            name = path.relative_to(self.run_dir).as_posix()
            if path.is_file() and not is_passing(path) and not name.startswith(CHECKPOINTS):
                self._send(name)
        for old in sorted(self._checkpoints(), key=checkpoint_step)[:-keep]:
            self.files.delete_file(f"{self.folder}/{CHECKPOINTS}/{old}/{MANIFEST}")
            self.files.delete_dir(f"{self.folder}/{CHECKPOINTS}/{old}")

    def push_record(self) -> None:
        """Send the record and the log, which change without a checkpoint.

        Raises:
            OSError: the storage failed.
        """
        for name in (RECORD, LOG):
            if (self.run_dir / name).is_file():
                self._send(name)

    def pull(self) -> bool:
        """Fetch the run where the copy is further than the directory, or all there is of it.

        Returns:
            whether something was fetched.

        Raises:
            UserError: the storage cannot be reached or read.
        """
        try:
            self._check_folder()
            if not self._has(CONFIG):
                return False
            there = max(self._checkpoints(), key=checkpoint_step, default=None)
            here = complete_checkpoints(self.run_dir / CHECKPOINTS)
            reached = checkpoint_step(here[-1].name) if here else -1
            behind = there is not None and checkpoint_step(there) > reached
            if (self.run_dir / CONFIG).exists() and not behind:
                return False
            self._fetch(there)
        except (OSError, pa.ArrowException) as error:
            raise unreachable(self.name, FLAG, error) from error
        return True

    def _fetch(self, newest: str | None) -> None:
        """Copy the newest checkpoint aside and rename it; all other files follow, config last."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if newest is not None:
            target = self.run_dir / CHECKPOINTS / newest
            aside = target.with_name(f".{newest}.partial")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            self._copy_here(f"{CHECKPOINTS}/{newest}", aside)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
        infos = self.files.get_file_info(fs.FileSelector(self.folder, recursive=True))
        start = len(self.folder) + 1
        names = [info.path[start:] for info in infos if info.type == fs.FileType.File]
        others = [name for name in names if not name.startswith(f"{CHECKPOINTS}/")]
        for name in sorted(others, key=CONFIG.__eq__):
            (self.run_dir / name).parent.mkdir(exist_ok=True)
            self._copy_here(name, self.run_dir / name)

    def _copy_here(self, name: str, target: Path) -> None:
        fs.copy_files(
            f"{self.folder}/{name}",
            str(target.absolute()),
            source_filesystem=self.files,
            destination_filesystem=fs.LocalFileSystem(),
        )

    def _send(self, name: str) -> None:
        """Send a file; pyarrow's copy_files would swallow an upload that breaks off at its end."""
        target = f"{self.folder}/{name}"
        data = (self.run_dir / name).read_bytes()
        try:
            self.files.create_dir(target.rpartition("/")[0])
            stream = self.files.open_output_stream(target)
            stream.write(data)
            stream.close()
        except pa.ArrowException as error:
            raise OSError(str(error)) from error

    def _check_folder(self) -> None:
        """Raise a UserError where a file has the name of the folder, which would get no copy."""
        if self._is_file(self.root):
            raise UserError(
                f"--storage-path {self.name.rpartition('/')[0]} is a file; name a folder"
            )

    def _has(self, name: str) -> bool:
        return self._is_file(f"{self.folder}/{name}")

    def _is_file(self, path: str) -> bool:
        try:
            found = self.files.get_file_info(path)
        except (OSError, pa.ArrowException) as error:
            raise unreachable(self.name, FLAG, error) from error
        return bool(found.type == fs.FileType.File)

    def _checkpoints(self) -> list[str]:
        """Return the names of the checkpoints that are whole."""
        folder = fs.FileSelector(f"{self.folder}/{CHECKPOINTS}", allow_not_found=True)
        names = [info.base_name for info in self.files.get_file_info(folder)]
        return [
            name
            for name in names
            if checkpoint_step(name) >= 0 and self._is_manifest(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        ]

    def _is_manifest(self, name: str) -> bool:
        """Return whether a manifest is there as a whole."""
        try:
            with self.files.open_input_stream(f"{self.folder}/{name}") as stream:
                return isinstance(json.loads(stream.read()), dict)
        except (FileNotFoundError, ValueError):
            return False
