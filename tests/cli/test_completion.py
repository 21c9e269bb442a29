"""The printed script, read by real shells."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayff.bench.__main__ import COMMANDS as BENCHMARKS
from rayff.completion import commands, main, places, script
from rayff.models.zoo import ZOO

BASH, ZSH = shutil.which("bash"), shutil.which("zsh")

COMPLETE = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rayff "$1" "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "bash"
    path.write_text(script("bash"))
    return path


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
class TestBash:
    def complete(self, bash_script: Path, line: str) -> list[str]:
        """Return what the last word of a line may become; bash itself cuts words at =."""
        words = re.split(r" |(?<=\w)(?==)|(?<==)", line)
        done = subprocess.run(
            [str(BASH), "--norc", "-c", COMPLETE, "bash", str(bash_script), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("python -m rayff.tr", "rayff.train"),
            ("python -m rayff.train --ar", "--arch"),
            ("python -m rayff.train --arch ", " ".join(ZOO)),
            ("python -m rayff.train --arch=vg", "vgg"),
            ("python -m rayff.train --arch=", " ".join(ZOO)),
            ("python3 -X dev -m rayff.train --lr 1 --arch resnet1", "resnet101"),
            ("PYTHONPATH=. python -m rayff.train --rule ", "fast plain"),
            ("python -m rayff.train --no-r", "--no-rebalance --no-resume"),
            ("python -m rayff.plan --precision ", "fp32 bf16"),
            ("python -m rayff.tune qu", "quick"),
            ("python -m rayff.tune quick --search ", "random optuna"),
            ("python -m rayff.evaluate runs/first --sp", "--split"),
            ("python -m rayff.bench ", " ".join(BENCHMARKS)),
            ("python -m rayff.bench step --pre", "--precision"),
            ("python -m rayff.bench backprop --task m", "mnist"),
            ("python -m rayff.completion ", "bash zsh"),
            ("python -m rayff.train --run-dir ru", ""),
            ("python -m rayff.no_such_command --a", ""),
            ("python -m pytest --a", ""),
            ("python ", ""),
        ],
    )
    def test_completes(self, line: str, expected: str, bash_script: Path) -> None:
        assert self.complete(bash_script, line) == expected.split()

    def test_what_completed_python_before_still_does(
        self, bash_script: Path, tmp_path: Path
    ) -> None:
        before = tmp_path / "before"
        usual = '_usual() { COMPREPLY=("usual:$2"); }\ncomplete -F _usual python\n'
        again = f'source "{bash_script}"\n'  # reading the script twice changes nothing
        before.write_text(usual + again + again)
        assert self.complete(before, "python -m http.ser") == ["usual:http.ser"]
        assert self.complete(before, "python -m rayff.train --ar") == ["--arch"]


def typed(shell: list[str], keys: list[tuple[str, str]]) -> None:
    """Type into a shell on a terminal; after each text another one must appear."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", PS1="ready> ")
        os.execv(shell[0], shell)
    try:
        shown = ""
        for text, awaited in [("", "ready> "), *keys]:
            os.write(terminal, text.encode())
            deadline = time.monotonic() + 20
            while awaited not in shown.replace("\b", ""):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"{awaited!r} is not in {shown!r}"
                if select.select([terminal], [], [], left_s)[0]:
                    shown += os.read(terminal, 4096).decode()
            shown = "" if text.endswith("\n") else shown
    finally:
        os.close(terminal)  # hangs up, which ends the shell
        os.waitpid(pid, 0)


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_the_tab_key_works_in_bash(bash_script: Path) -> None:
    typed(
        [str(BASH), "--norc", "--noprofile", "-i"],
        [
            (f"source {bash_script}\n", "ready> "),
            ("python -m rayff.tra\t", "rayff.train "),
            ("--ar\t", "--arch "),
            ("tiny\t", "tinycnn "),
        ],
    )


@pytest.mark.skipif(ZSH is None, reason="there is no zsh here")
def test_the_tab_key_works_in_zsh(tmp_path: Path) -> None:
    path = tmp_path / "zsh"
    path.write_text(script("zsh"))
    typed(
        [str(ZSH), "-f", "-i"],
        [
            (f"autoload -U compinit; compinit -u -D; source {path}\n", "ready> "),
            ("python -m rayff.tra\t", "rayff.train "),
            ("--ar\t", "--arch "),
        ],
    )


@pytest.mark.parametrize("command", [name for name in commands() if name != "rayff.bench"])
def test_the_flags_are_those_of_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sys.modules[command].main(["--help"])  # type: ignore[attr-defined]
    text = capsys.readouterr().out.partition("options")[2]
    shown = re.findall(r"^\W*((?:-h, )?--[\w-]+(?:, --[\w-]+)?)", text, re.MULTILINE)
    flags = {flag for line in shown for flag in line.split(", ")} - {"-h"}
    assert flags == set(dict(places())[f"{command} -"])


def test_all_commands_are_known() -> None:
    assert {"rayff.train", "rayff.doctor", "rayff.completion", "rayff.bench"} <= set(commands())
    assert "rayff.cli" not in set(commands())


def test_help_says_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "~/.bashrc" in capsys.readouterr().out
