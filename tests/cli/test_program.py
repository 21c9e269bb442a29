"""The program `rayff`: its commands, their help, and how it is started."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rayff
from rayff.__main__ import COMMANDS, HELP, main
from rayff.bench.__main__ import COMMANDS as BENCHMARKS
from rayff.bench.__main__ import HELP as BENCH_HELP
from rayff.cli import command_options, parse
from rayff.config.errors import UserError

ROOT = Path(rayff.__file__).parents[1]

NAMES = [name for name in COMMANDS if name != "bench"] + [f"bench {name}" for name in BENCHMARKS]


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: rayff COMMAND [OPTIONS]\n")
    names = "train evaluate predict export plan tune runs report bench doctor"
    assert [*COMMANDS] == names.split()
    for name, about in COMMANDS.items():
        assert re.search(f"^  {name} +{re.escape(about)}$", text, re.MULTILINE)


@pytest.mark.slow
def test_a_module_of_the_working_directory_is_found(tmp_path: Path) -> None:
    """And a message has its import path as it was given, where `:name:` would be an emoji."""
    (tmp_path / "nets.py").write_text("def fire(classes, channels, width):\n    return 3\n")
    program = Path(sys.executable).with_name("rayff")
    done = subprocess.run(
        [program, "train", "--arch", "nets:fire:x", "--backend", "local"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "nets:fire:x" in done.stderr
    done = subprocess.run(
        [program, "train", "--arch", "nets:fire", "--backend", "local"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "cannot be imported" not in done.stderr
    assert "nets:fire" in done.stderr
    assert done.returncode == 2


def test_help_and_a_mistake_need_neither_torch_nor_ray() -> None:
    code = """
import sys
from rayff.__main__ import main
from rayff.config.errors import UserError
main(["--help"])
main(["--version"])
for args in (["tran"], ["train", "--learning-rate", "1"]):
    try:
        main(args)
    except UserError as error:
        print(error)
assert not {"torch", "ray", "numpy"} & sys.modules.keys()
"""
    done = run(code)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-3:] == [
        f"rayff {rayff.__version__}",
        "unknown command 'tran' of rayff; did you mean train?",
        "unknown option --learning-rate (did you mean --lr?); see rayff train --help",
    ]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "unknown command 'trian' of rayff; did you mean train?"),
        (["eval"], "unknown command 'eval' of rayff; did you mean evaluate?"),
        (
            ["fit"],
            "unknown command 'fit' of rayff; known are train, evaluate, predict, export, plan, "
            "tune, runs, report, bench, doctor",
        ),
        (["bench", "stpe"], "unknown command 'stpe' of rayff bench; did you mean step?"),
        (["bench", "step", "--bs=3"], None),
        (["--tyro-write-completion", "bash"], None),
        (["--tyro-write-completion", "csh", "file"], None),
        (["--tyro-print-completion"], None),
    ],
)
def test_a_mistake_is_one_sentence(args: list[str], sentence: str | None) -> None:
    with pytest.raises(UserError) as caught:
        main(args)
    assert sentence in (None, str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_refuses_an_unknown_option(name: str) -> None:
    with pytest.raises(UserError, match=f"^unknown option --nope; see rayff {name} --help$"):
        main([*name.split(), "--nope"])


def examples(text: str) -> list[str]:
    """Return what follows `rayff` in the examples of a help text."""
    return re.findall("^  rayff (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_and_its_examples_are_right(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*name.split(), "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rayff {name} [-h]")
    assert not re.search("{[a-z]+}", text), "a placeholder or None"
    found = examples(text)
    assert found
    *group, command = name.split()
    kind = command_options(".".join(["rayff", *group]), command)
    for line in found:
        assert line.startswith(name)
        args = shlex.split(line.removeprefix(name).partition(" > ")[0])
        parse(kind, module=kind.__module__, description="", args=args)


def test_the_examples_of_the_groups_name_commands() -> None:
    for words in map(str.split, examples(HELP) + examples(BENCH_HELP)):
        assert words[0] in (*COMMANDS, "--version", "--tyro-write-completion")
        assert words[0] != "bench" or words[1] in BENCHMARKS


@pytest.mark.parametrize("module", ["rayff", "rayff.evaluate", "rayff.bench", "rayff.tune"])
def test_modules_run_as_programs(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--nope"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: unknown (option|command) [^\n]+\n", done.stderr)


def test_the_console_script_is_the_program() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["rayff"].partition(":")
    code = f"import sys; from {module} import {function}; {function}()"
    done = run(code, "evaluate", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no run directory nowhere\n"
