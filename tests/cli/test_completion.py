"""The TAB key, pressed in real shells."""

import os
import pty
import select
import shutil
import time
from pathlib import Path

import pytest

from rayff.__main__ import main
from rayff.config.errors import UserError

BASH, ZSH = shutil.which("bash"), shutil.which("zsh")

KEYS = [
    ("rayff tra\t", "rayff train "),
    ("--ar\t", "--arch "),
    ("tiny\t", "tinycnn "),
    ("--task fm\t", "fmnist "),
    ("--meth\t", "--method "),
    ("bp-\t", "bp-deepsup "),
    ("--run-dir ru\t", "runs/"),
    ("fi\t", "first/"),
    ("\x15rayff bench ste\t", "rayff bench step "),
    ("--repea\t", "--repeats "),
    ("\x15rayff evaluate ru\t", "rayff evaluate runs/"),
]
"""What is typed, one after the other, and what stands on the line after it."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell, name in (("bash", "bash"), ("zsh", "_rayff")):
        assert main(["--tyro-write-completion", shell, str(folder / "new" / name)]) == 0
    return folder / "new"


def type_into(shell: list[str], keys: list[tuple[str, str]], folder: Path) -> None:
    """Type into a shell on a terminal; after each text the expected one must appear."""
    (folder / "runs" / "first").mkdir(parents=True)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="dumb", PS1="ready> ", COLUMNS="200")
        os.execv(shell[0], shell)
    try:
        shown = ""
        for text, expected in [("", "ready> "), *keys]:
            os.write(terminal, text.encode())
            deadline = time.monotonic() + 20
            while expected not in shown.replace("\b", ""):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{expected!r} is not in {shown!r}"
                if select.select([terminal], [], [], left_s)[0]:
                    shown += os.read(terminal, 4096).decode()
            shown = ""
    finally:
        os.close(terminal)  # hangs up, which ends the shell
        os.waitpid(pid, 0)


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_in_bash(scripts: Path, tmp_path: Path) -> None:
    keys = [(f"source {scripts / 'bash'}\n", "ready> "), *KEYS]
    type_into([str(BASH), "--norc", "--noprofile", "-i"], keys, tmp_path)


@pytest.mark.skipif(ZSH is None, reason="there is no zsh here")
def test_in_zsh(scripts: Path, tmp_path: Path) -> None:
    setup = f"fpath=({scripts} $fpath); autoload -U compinit; compinit -u -D\n"
    type_into([str(ZSH), "-f", "-i"], [(setup, "ready> "), *KEYS], tmp_path)


def test_is_printed(capsys: pytest.CaptureFixture[str], scripts: Path) -> None:
    assert main(["--tyro-print-completion", "bash"]) == 0
    assert capsys.readouterr().out == (scripts / "bash").read_text()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/script cannot be written: "):
        main(["--tyro-write-completion", "zsh", str(tmp_path / "file" / "script")])
