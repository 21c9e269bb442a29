"""Folders on a command line: which image files they stand for."""

import os
from pathlib import Path

from rayff.data.image_files import image_files


def test_links_are_followed_once_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    inside, elsewhere = tmp_path / "scans" / "a", tmp_path / "elsewhere"
    for folder in (inside, elsewhere):
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    (inside / "linked").symlink_to(elsewhere)
    (inside / "circle").symlink_to(tmp_path / "scans")
    (inside / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(inside / "pipe.png")
    found, problems = image_files([str(tmp_path / "scans")])
    names = [os.path.relpath(file, inside) for file in found]
    assert names == ["1.png", "gone.png", "linked/1.png"], "a link to nothing is a mistake to say"
    assert problems == []
