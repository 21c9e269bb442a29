"""Folders and URIs, and the file system of each: pyarrow's own or, for other URIs, fsspec's."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
from pyarrow import fs

from rayff.config.errors import UserError

_WITH_BUCKETS = ("s3", "gs", "gcs")


def is_uri(location: str) -> bool:
    """Return whether a location is a URI, such as s3://bucket/folder."""
    return "://" in location


def absolute(location: str, flag: str) -> str:
    """Return a location that means the same from every working directory.

    Raises:
        UserError: it begins with the home directory of a user that is not known.
    """
    if is_uri(location):
        return location
    expanded = os.path.expanduser(location)
    if expanded.startswith("~"):
        raise UserError(
            f"{flag} {location}: there is no such home directory; write the folder's whole path"
        )
    return os.path.abspath(expanded)


def file_system(location: str, flag: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a folder or URI and the path in it.

    Those that pyarrow knows (s3, gs, hdfs, file) are its own; others come from fsspec.

    Args:
        location: folder or URI.
        flag: the option that names it, for messages.

    Raises:
        UserError: there is none, or the URI holds a password or no bucket.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), absolute(location, flag)
    parts = urlsplit(location)
    if parts.username or parts.password:
        raise UserError(
            f"{flag} {parts.scheme}://...@{parts.hostname}: a run directory would keep the key; "
            "give it through the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if parts.scheme in _WITH_BUCKETS and not parts.hostname:
        raise UserError(
            f"{flag} {location} names no bucket; use a URI such as {parts.scheme}://bucket/folder"
        )
    try:
        files, path = fs.FileSystem.from_uri(location)
    except pa.ArrowInvalid:  # none of pyarrow's own
        files, path = _from_fsspec(location, flag)
    except OSError as error:
        raise unreachable(location, flag, error) from error
    return files, str(path)


def _from_fsspec(location: str, flag: str) -> tuple[fs.FileSystem, str]:
    try:
        other, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{flag} {location}: {reason}; use a folder or a URI such as s3://bucket/folder"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(other)), path


def unreachable(location: str, flag: str, error: Exception) -> UserError:
    """Return the error of a location whose file system fails."""
    reason = " ".join(str(error).split())
    return UserError(
        f"{flag}: {location} cannot be reached ({reason}); check its name and your access"
    )
