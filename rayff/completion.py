"""python -m rayff.completion: prints the script with which a shell completes the commands."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

import rayff
from rayff.cli import parse, run_command
from rayff.config.kernels import METHODS
from rayff.data.tasks import TASKS
from rayff.models.zoo import ZOO

DESCRIPTION = """\
Print a script with which bash or zsh completes commands, flags and their values.

Once a shell has read it, TAB works behind python -m rayff. and in all that follows.

Examples:
  source <(python -m rayff.completion bash)
  python -m rayff.completion bash > ~/.rayff-completion
  echo 'source ~/.rayff-completion' >> ~/.bashrc

The first is for this shell alone, the other two are for every new one; for zsh write zsh, and
~/.zshrc, behind its compinit.
"""

BODY = """\
# Completes python -m rayff.COMMAND; printed by python -m rayff.completion.

_rayff_words() {
  case "$1" in
%(cases)s
  esac
}

_rayff() {
  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" key="" i
  COMPREPLY=()
  for ((i = 1; i + 1 < COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == -m && ${COMP_WORDS[i+1]} == rayff.* ]]; then
      key="${COMP_WORDS[i+1]}"
      if [[ -z $(_rayff_words "$key -") ]] && ((i + 2 < COMP_CWORD)); then
        key="$key ${COMP_WORDS[i+2]}"
      fi
      break
    fi
  done
  if [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
  if [[ $current == "=" ]]; then current=""; fi
  if [[ -z $key && $before == -m && $current == r* ]]; then
    key="rayff"
  elif [[ -z $key ]]; then
    if [[ -n $_rayff_usual ]]; then "$_rayff_usual" "$@"; fi
    return
  elif [[ $current == -* ]]; then
    key="$key -"
  elif [[ $before == -* ]]; then
    key="$key $before"
  fi
  COMPREPLY=($(compgen -W "$(_rayff_words "$key")" -- "$current"))
}
"""

ENDS = {
    # what completes Python's own options comes first
    "bash": """
_rayff_usual="${_rayff_usual:-}"
if declare -F _completion_loader > /dev/null; then _completion_loader python; fi
if [[ $(complete -p python 2> /dev/null) =~ -F\\ ([^ ]+) && ${BASH_REMATCH[1]} != _rayff ]]; then
  _rayff_usual="${BASH_REMATCH[1]}"
fi
complete -o default -F _rayff python python3
""",
    "zsh": """
autoload -U +X bashcompinit && bashcompinit
_rayff_usual=""
_rayff_or_python() {
  if [[ "${words[*]}" == *rayff* ]]; then
    _bash_complete -o default -F _rayff
  else
    _python
  fi
}
compdef _rayff_or_python python python3
""",
}


@dataclass(frozen=True, kw_only=True)
class CompletionCommand:
    """The flags."""

    shell: tyro.conf.Positional[
        Annotated[Literal["bash", "zsh"], tyro.conf.arg(metavar="{bash,zsh}")]
    ] = "bash"
    """The shell that is to read the script."""


def main(args: Sequence[str]) -> int:
    """Print the script."""
    command = parse(
        CompletionCommand, module="rayff.completion", description=DESCRIPTION, args=args
    )
    print(script(command.shell), end="")
    return 0


def script(shell: Literal["bash", "zsh"]) -> str:
    """Return the script: a list of words for each place of a command line, and who looks there."""
    words = dict(places())
    words["rayff"] = tuple(sorted({key.split()[0] for key in words}))
    same: dict[tuple[str, ...], list[str]] = {}
    for key, those in words.items():
        same.setdefault(those, []).append(f'"{key}"')
    cases = "\n".join(
        f'    {" | ".join(keys)})\n      echo "{" ".join(those)}" ;;'
        for those, keys in same.items()
        if those
    )
    return BODY % {"cases": cases} + ENDS[shell]


def places() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what can stand where, by a key.

    "rayff.train -" is for a flag, "rayff.train --arch" for its value, and "rayff.tune" for what
    is neither. A benchmark is "rayff.bench step".
    """
    for name in commands():
        module = importlib.import_module(
            f"{name}.__main__" if hasattr(importlib.import_module(name), "__path__") else name
        )
        if not hasattr(module, "COMMANDS"):
            yield from _command_places(name, module)
            continue
        yield name, tuple(module.COMMANDS)
        for part in module.COMMANDS:
            yield from _command_places(f"{name} {part}", importlib.import_module(f"{name}.{part}"))


def commands() -> Iterator[str]:
    """Yield the modules of this package that can be run."""
    for found in pkgutil.iter_modules(rayff.__path__, "rayff."):
        if found.ispkg:
            runs = importlib.util.find_spec(f"{found.name}.__main__") is not None
        else:
            runs = hasattr(importlib.import_module(found.name), "main")
        if runs:
            yield found.name


@functools.cache
def known_values() -> dict[str, tuple[str, ...]]:
    """Return the names that an option of any text takes, by the option's name."""
    from rayff.tune.space import space_folders

    spaces = {file.stem for folder in space_folders() for file in folder.glob("*.py")}
    return {
        "arch": tuple(ZOO),
        "task": tuple(TASKS),
        "kernels": METHODS,
        "space": tuple(sorted(spaces)),
    }


def _command_places(name: str, module: ModuleType) -> Iterator[tuple[str, tuple[str, ...]]]:
    (kind,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and value.__name__.endswith("Command")
    )
    flags, free, known = ["--help"], False, known_values()
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, flag = hints[field.name], f"--{field.name.replace('_', '-')}"
        values = known.get(field.name, ()) or _literals(hint)
        if _marked(hint, tyro.conf.Positional):
            free = True
            yield name, values
            continue
        flags.append(flag)
        if hint is bool:
            flags.append(f"--no-{flag[2:]}")
        if values:
            yield f"{name} {flag}", values
    yield f"{name} -", tuple(flags)
    if not free:
        yield name, tuple(flags)


def _marked(hint: Any, marker: Any) -> bool:
    """Tell whether a field has one of tyro's marks."""
    return get_origin(hint) is Annotated and get_args(marker[int])[1] in get_args(hint)[1:]


def _literals(hint: Any) -> tuple[str, ...]:
    """Return the words of the Literal in a type, if there is one."""
    if get_origin(hint) is Literal:
        return tuple(map(str, get_args(hint)))
    return tuple(word for part in get_args(hint) for word in _literals(part))


if __name__ == "__main__":
    run_command(main)
