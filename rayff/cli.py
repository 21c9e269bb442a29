"""What all commands share: flags from dataclasses, and how errors reach the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro
from rich.console import Console
from rich.markup import escape

from rayff.spec import UserError

T = TypeVar("T")

_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _comma_separated(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[tuple[int, ...]] | None:
    """Read a tuple of numbers as 5,9,13."""
    if type_info.type != tuple[int, ...]:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=lambda args: tuple(int(part) for part in args[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def parse(
    kind: type[T], *, module: str, description: str, args: Sequence[str], default: T | None = None
) -> T:
    """Return an instance of the dataclass `kind` made from command-line flags.

    Each field is a flag, its docstring the help; dashes and underscores are both accepted. A
    usage error prints what is wrong and exits with code 2.

    Args:
        kind: a dataclass.
        module: as in `python -m MODULE`.
        description: shown by --help, examples included.
        args: the command line without the program's name.
        default: where flags that are not given come from.
    """
    return tyro.cli(
        kind,
        prog=f"python -m {module}",
        description=description,
        args=args,
        default=default,
        registry=_registry,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )


def run_command(command: Callable[[Sequence[str]], int]) -> None:
    """Run a command with the program's arguments and exit with its code.

    A UserError becomes its sentence and exit code 2, an interruption exit code 130; neither
    shows a traceback.
    """
    try:
        code = command(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}"
        )
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
