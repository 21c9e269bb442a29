"""What all commands share: flags from dataclasses, and how errors reach the terminal."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args

import tyro
from rich.console import Console
from rich.markup import escape

from rayff.config.errors import RunError, UserError
from rayff.config.text import printable

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
        instance_from_str=lambda args: _numbers(args[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not whole numbers with commas between them") from None


@_registry.primitive_rule
def _optional(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read `T | None` as T: None is what a flag is that was not given."""
    args = get_args(type_info.type)
    if type_info.type_origin not in (Union, types.UnionType) or type(None) not in args:
        return None
    rest: Any = Union.__getitem__(tuple(arg for arg in args if arg is not type(None)))
    spec = tyro.constructors.ConstructorRegistry.get_primitive_spec(
        tyro.constructors.PrimitiveTypeInfo.make(rest, type_info.markers)
    )
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [] if value is None else spec.str_from_instance(value),
    )


@_registry.struct_rule
def _readable_help(
    info: tyro.constructors.StructTypeInfo,
) -> tyro.constructors.StructConstructorSpec | None:
    """Read a dataclass as usual, but with help and errors that speak to a user.

    A field's docstring is one paragraph, a default that is None or False is not shown, and a
    UserError leaves the parser as it is.
    """
    if not dataclasses.is_dataclass(info.type) or _readable_help in info.markers:
        return None
    usual = tyro.constructors.ConstructorRegistry.get_struct_spec(
        dataclasses.replace(info, markers=(*info.markers, _readable_help))
    )
    if not isinstance(usual, tyro.constructors.StructConstructorSpec):
        return None

    def instantiate(**values: Any) -> Any:
        try:
            return usual.instantiate(**values)
        except UserError as error:
            raise _Refused(error) from error

    return tyro.constructors.StructConstructorSpec(
        instantiate=instantiate, fields=tuple(_readable_field(field) for field in usual.fields)
    )


class _Refused(Exception):
    """Carries a UserError through the parser, which would print any ValueError its own way."""

    def __init__(self, error: UserError) -> None:
        self.error = error


def _readable_field(
    field: tyro.constructors.StructFieldSpec,
) -> tyro.constructors.StructFieldSpec:
    def helptext() -> str | None:
        text = field.helptext() if callable(field.helptext) else field.helptext
        return None if text is None else " ".join(text.split())

    def hint(default: str) -> str:
        return "" if default in ("", "False") else f"(default: {default})"

    kind: Any = Annotated[field.type, tyro.conf.arg(help_behavior_hint=hint)]
    return dataclasses.replace(field, type=kind, helptext=helptext)


def parse(
    kind: type[T], *, module: str, description: str, args: Sequence[str], default: T | None = None
) -> T:
    """Return an instance of the dataclass `kind` made from command-line flags.

    Each field is a flag, its docstring the help; dashes and underscores are both accepted. A
    usage error prints what is wrong and exits with code 2; a UserError that the dataclass raises
    is raised here.

    Args:
        kind: a dataclass.
        module: as in `python -m MODULE`.
        description: shown by --help, examples included.
        args: the command line without the program's name.
        default: where flags that are not given come from.
    """
    try:
        return tyro.cli(
            kind,
            prog=f"python -m {module}",
            description=description,
            args=args,
            default=tyro.MISSING_NONPROP if default is None else default,
            registry=_registry,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        )
    except _Refused as refused:
        raise refused.error from None


def run_command(command: Callable[[Sequence[str]], int]) -> None:
    """Run a command with the program's arguments and exit with its code.

    A UserError becomes its sentence and exit code 2, a RunError its sentence and exit code 1,
    an interruption exit code 130; none shows a traceback.
    """
    try:
        code = command(sys.argv[1:])
        sys.stdout.flush()
    except (UserError, RunError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {escape(printable(str(error)))}"
        )
        code = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
