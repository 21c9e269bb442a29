"""Every command of README.md and docs/ parses."""

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rayff.cli
from tests.docs.pages import CommandLine, command_lines, write_modules

COMMANDS = command_lines()


class Parsed(Exception):
    """The command line is a valid one."""


@pytest.fixture(autouse=True)
def parse_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop every command once its flags are read; the modules of examples can be imported."""
    parse = rayff.cli.tyro.cli

    def parse_then_stop(*args: Any, **options: Any) -> None:
        parse(*args, **options)
        raise Parsed

    monkeypatch.setattr(rayff.cli.tyro, "cli", parse_then_stop)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def main_of(command: str) -> Callable[[Sequence[str]], int]:
    """Return what `python -m rayff.COMMAND` runs, or `python -m rayff` for no command."""
    name = f"rayff.{command}".rstrip(".")
    spec = find_spec(name)
    assert spec is not None, f"there is no command {command!r}"
    is_package = spec.submodule_search_locations is not None
    main: Callable[[Sequence[str]], int] = importlib.import_module(
        f"{name}.__main__" if is_package else name
    ).main
    return main


def test_the_pages_have_commands() -> None:
    found = {line.command for line in COMMANDS}
    expected = {"train", "evaluate", "predict", "export", "plan", "tune", "runs", "report"}
    expected |= {"bench", "doctor"}
    assert found >= expected
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{line.page}: {line.text}"[:80])
def test_command_parses(line: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [arg for arg in line.args if arg.startswith("~")]
    args = [str(Path(arg).expanduser()) if arg in paths else arg for arg in line.args]
    for path in paths:
        Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
    main = main_of(line.command)
    if not line.command:  # an option of the program itself, which is carried out
        assert main(args) == 0
        return
    with pytest.raises((Parsed, SystemExit)) as end:
        main(args)
    assert getattr(end.value, "code", 0) in (0, None), capsys.readouterr().err
