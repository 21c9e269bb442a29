"""The program `rayff`, and `python -m rayff`: dispatches to the commands."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tyro.extras import SubcommandApp

from rayff import __version__
from rayff.bench.__main__ import COMMANDS as BENCHMARKS
from rayff.cli import COMPLETION, command_options, constructors, run_command, run_group
from rayff.config.errors import UserError

COMMANDS = {
    "train": "train a network as a pipeline of Ray actors",
    "evaluate": "print the accuracy of a trained network",
    "predict": "classify image files with a trained network",
    "export": "write a trained network to a file for ONNX Runtime or PyTorch alone",
    "plan": "show how a network would be cut into stages, without training",
    "tune": "search over trainings with Ray Tune",
    "runs": "list runs with their states and accuracies",
    "report": "write an HTML page with figures of a run",
    "bench": "measure speed and memory",
    "doctor": "check this machine or cluster",
}

HELP = """\
Train networks by local losses (Forward-Forward), as pipelines of Ray actors.

{commands}

Examples:
  rayff train --run-dir runs/first
  rayff evaluate runs/first
  rayff train --help
  rayff --version

Completion by the TAB key, in bash (sourced in ~/.bashrc), zsh (in a folder of $fpath) or fish:
  rayff --tyro-write-completion bash ~/.rayff-completion
  rayff --tyro-write-completion zsh ~/.zfunc/_rayff
  rayff --tyro-write-completion fish ~/.config/fish/completions/rayff.fish
"""

SHELLS = ("bash", "zsh", "fish")

_REPAIRS = {
    # bash completes file names itself: with the slash of folders, and for positional arguments
    "complete -F": "complete -o default -F",
    'COMPREPLY=($(compgen -f -- "$cur"))': "COMPREPLY=()",
    'matches+=("$completion")': '[[ -z $completion ]] || matches+=("$completion")',
    # zsh completes file names for positional arguments
    "_describe 'rayff completions' completion_array": "_describe rayff completion_array || _files",
}
"""What stands in tyro's scripts, and what works better."""


def main(args: Sequence[str]) -> int:
    """Run the command that the first argument names."""
    if args and args[0] == "--version":
        print(f"rayff {__version__}")
        return 0
    if args and args[0] in COMPLETION:
        write_completion(args)
        return 0
    return run_group("rayff", COMMANDS, HELP, args)


def write_completion(args: Sequence[str]) -> None:
    """Write the script by which a shell completes commands, options and values.

    Args:
        args: `--tyro-write-completion SHELL FILE`, or `--tyro-print-completion SHELL`.
    """
    words = [*args[1:], *(["-"] if args[0] == COMPLETION[1] else [])]
    if len(words) != 2 or words[0] not in SHELLS:
        raise UserError(f"write {COMPLETION[0]} SHELL FILE, with one of {', '.join(SHELLS)}")
    shell, file = words
    script = completion_script(shell)
    if file == "-":
        print(script, end="")
        return
    path = Path(file).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def completion_script(shell: str) -> str:
    """Return tyro's completion script for all commands."""
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        _app("rayff", COMMANDS).cli(
            prog="rayff",
            args=["--tyro-print-completion", shell],
            registry=constructors(for_completion=True),
        )
    text = script.getvalue()
    for found, better in _REPAIRS.items():
        text = text.replace(found, better)
    return text


def _app(package: str, commands: Mapping[str, str]) -> SubcommandApp:
    app = SubcommandApp()
    for name in commands:
        if name == "bench":
            app.command(_app("rayff.bench", BENCHMARKS), name=name)
        else:
            app.command(command_options(package, name), name=name)
    return app


def run() -> None:
    """The console script `rayff`: finds modules of the working directory, as python -m does."""
    sys.path.append("")
    run_command(main)


if __name__ == "__main__":
    run()
