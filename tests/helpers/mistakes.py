"""What is promised of a mistake: one sentence, and nothing written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayff.config.errors import UserError


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of the last change of the files below a folder, and its folders.

    The time of a folder is left out: a lock comes and goes there.
    """
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        if not path.is_dir()
        else (0, 0)
        for path in folder.rglob("*")
    }


@contextmanager
def refused(match: str, folder: Path | None = None) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a UserError of one line that matches, with nothing changed below `folder`."""
    before = tree(folder) if folder else {}
    with pytest.raises(UserError, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    if folder:
        assert tree(folder) == before
