"""What all commands share: options from dataclasses, groups of commands, and errors."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, TypeVar, Union, cast, get_args

import tyro
from rich.console import Console
from rich.markup import escape
from tyro import _errors as tyro_errors
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from rayff.config.errors import RunError, UserError, near
from rayff.config.option_names import near_option
from rayff.config.text import printable
from rayff.console.outlet import Output, checked_output, discard

T = TypeVar("T")

COMPLETION = ("--tyro-write-completion", "--tyro-print-completion")
"""What tyro programs call the options that make a completion script."""

_NAMES = {
    "architectures": "rayff.models.zoo:ARCHITECTURES.names",
    "tasks": "rayff.data.tasks:TASKS.names",
    "losses": "rayff.config.registries:LOSSES.names",
    "optimizers": "rayff.config.registries:OPTIMIZERS.names",
    "augmentations": "rayff.config.registries:AUGMENTATIONS.names",
    "kernels": "rayff.config.kernels:BACKENDS",
    "loggers": "rayff.config.validation:LOGGERS",
    "profiles": "rayff.partition.device_profile:profile_names",
}
"""Where the names are that stand for {architectures} and so on in the help of an option."""

_PLACEHOLDER = re.compile("{(" + "|".join(_NAMES) + ")}")

_VALUES = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "N,N,...": "whole numbers with commas between them",
    "X,X,...": "numbers with commas between them",
}
"""What an option takes, by the placeholder for its value in the help."""


def names(placeholder: str) -> tuple[str, ...]:
    """Return the registered names that a placeholder such as `architectures` stands for."""
    found = pkgutil.resolve_name(_NAMES[placeholder])
    return tuple(found() if callable(found) else found)


def parse(
    kind: type[T], *, module: str, description: str, args: Sequence[str], default: T | None = None
) -> T:
    """Return an instance of the dataclass `kind` made from command-line options.

    Each field is an option, its docstring the help; dashes and underscores are both accepted.

    Args:
        kind: a dataclass.
        module: as in `python -m MODULE`.
        description: shown by --help, examples included.
        args: the command line without the program's name.
        default: values of options that are not given.

    Raises:
        UserError: an unknown option, a missing or wrong value, or whatever `kind` refuses.
    """
    if args and args[0].replace("_", "-") in COMPLETION:
        raise UserError(f"completion is for all commands at once: rayff {COMPLETION[0]} bash FILE")
    program = _program(module)
    with tyro_errors.on_parse_error(partial(_refuse, kind, program, args)):
        return tyro.cli(
            kind,
            prog=program,
            description=description,
            args=args,
            default=tyro.MISSING_NONPROP if default is None else default,
            registry=constructors(),
        )


def _program(module: str) -> str:
    """Return a command as it was typed: `rayff train`, or `python -m rayff.train`."""
    spec = sys.modules["__main__"].__spec__
    typed = "" if spec is None else spec.name.removesuffix(".__main__")
    if typed.startswith("rayff."):
        return f"python -m {module}"
    words = module.replace(".", " ", 1)
    return f"python -m {words}" if typed == "rayff" else words


def constructors(*, for_completion: bool = False) -> ConstructorRegistry:
    """Return how tyro reads the fields of a command, where it differs from tyro's own way.

    Args:
        for_completion: options that take a registered name have these names as choices. For
            parsing they have not: `package.module:object` is accepted as well.
    """
    registry = ConstructorRegistry()
    registry.primitive_rule(_comma_separated)
    registry.primitive_rule(_optional)
    registry.struct_rule(partial(_readable, for_completion))
    return registry


def _comma_separated(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read a tuple of numbers as 5,9,13; tyro would read 5 9 13."""
    kinds: dict[Any, tuple[type, str]] = {
        tuple[int, ...]: (int, "N,N,..."),
        tuple[float, ...]: (float, "X,X,..."),
    }
    if info.type not in kinds:
        return None
    number, metavar = kinds[info.type]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: tuple(map(number, args[0].split(","))),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read `T | None` as T; with tyro's DisallowNone, None is still listed among the choices."""
    args = get_args(info.type)
    if info.type_origin not in (Union, types.UnionType) or type(None) not in args:
        return None
    rest: Any = Union.__getitem__(tuple(arg for arg in args if arg is not type(None)))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(rest, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [] if value is None else spec.str_from_instance(value),
    )


def _readable(for_completion: bool, info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read a dataclass as usual, with the help of its fields as `_readable_field` has it."""
    if not dataclasses.is_dataclass(info.type) or _readable in info.markers:
        return None
    usual = ConstructorRegistry.get_struct_spec(
        dataclasses.replace(info, markers=(*info.markers, _readable))
    )
    if not isinstance(usual, StructConstructorSpec):
        return None
    fields = tuple(_readable_field(field, for_completion) for field in usual.fields)
    return dataclasses.replace(usual, fields=fields)


def _readable_field(field: StructFieldSpec, for_completion: bool) -> StructFieldSpec:
    """Return a field with names for placeholders in its help, and no default of None or False."""

    def docstring() -> str:
        text = field.helptext() if callable(field.helptext) else field.helptext
        return " ".join((text or "").split())

    def helptext() -> str:
        return _PLACEHOLDER.sub(lambda found: ", ".join(names(found[1])), docstring())

    def hint(default: str) -> str:
        return "" if default in ("", "False") else f"(default: {default})"

    kind: Any = Annotated[field.type, tyro.conf.arg(help_behavior_hint=hint)]
    if for_completion and (found := _PLACEHOLDER.search(docstring())):
        kind = Annotated[kind, _choice(names(found[1]))]
    return dataclasses.replace(field, type=kind, helptext=helptext)


def _choice(choices: tuple[str, ...]) -> PrimitiveConstructorSpec[str]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME",
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [] if value is None else [value],
        choices=choices,
    )


def _refuse(
    kind: type[Any], program: str, args: Sequence[str], event: tyro_errors.ParseErrorEvent
) -> None:
    """Raise a UserError with one sentence where tyro would print a box."""
    more = f"see {program} --help"
    if unknown := _unknown_options(kind, args):
        raise UserError(f"{unknown}; {more}")
    match event:
        case tyro_errors.UnrecognizedArgs(tokens=tokens):
            raise UserError(f"unexpected argument {tokens[0]!r}; {more}")
        case tyro_errors.MissingArgs(missing_arguments=missing):
            lacking = ", ".join(str(each.arg.lowered.metavar) for each in missing)
            raise UserError(f"{lacking} is missing; {more}")
        case tyro_errors.BadValue(argument=argument):
            raise UserError(f"{argument.display_name()} needs a value; {more}")
        case tyro_errors.InvalidChoice(argument=argument, value=value, choices=choices):
            raise UserError(
                f"{argument.display_name()} must be one of {', '.join(choices)}, not {value!r}"
            )
        case tyro_errors.InstantiationFailure(message=message, argument=None):
            raise UserError(message)  # of the dataclass itself
        case tyro_errors.InstantiationFailure(argument=argument):
            assert argument is not None
            flag, wanted = argument.display_name(), _VALUES[str(argument.lowered.metavar)]
            raise UserError(f"{flag} must be {wanted}, not {_value(flag, args)!r}")


def _unknown_options(kind: type[Any], args: Sequence[str]) -> str:
    """Return what is said of the options in `args` that `kind` does not have; empty: none."""
    fields = [f for f in dataclasses.fields(kind) if "Positional" not in str(f.type)]
    known = {"help", "h", *(field.name.replace("_", "-") for field in fields)}
    known |= {f"no-{field.name.replace('_', '-')}" for field in fields if field.type == "bool"}
    hints = []
    for word in args:
        flag = word.partition("=")[0]
        name = flag.lstrip("-").replace("_", "-")
        has_name = flag.startswith("--") or flag == "-h"
        if not re.match("--?[A-Za-z]", flag) or (has_name and name in known):
            continue
        found = near_option(name, known)
        shown = flag if flag.isprintable() else ascii(flag)
        hints.append(f"{shown} (did you mean --{found}?)" if found else shown)
    return f"unknown option{'s' if hints[1:] else ''} {', '.join(hints)}" if hints else ""


def _value(flag: str, args: Sequence[str]) -> str:
    """Return the value of an option that the command line has as --flag VALUE or --flag=VALUE."""
    value = ""
    for word, following in zip(args, (*args[1:], ""), strict=True):
        name, equals, rest = word.partition("=")
        if name.replace("_", "-") == flag:
            value = rest if equals else following
    return value


def run_group(
    package: str, commands: Mapping[str, str], help_text: str, args: Sequence[str]
) -> int:
    """Run the command of a package that the first argument names; return its exit code.

    Args:
        package: holds a module, or a package with a `__main__`, for each command.
        commands: one line about each command, by its name.
        help_text: what --help shows; {commands} stands for the list of commands.
        args: the command line without the program's name.

    Raises:
        UserError: an unknown command.
    """
    program = _program(package)
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, commands))
        listed = "\n".join(f"  {name:<{width}}  {about}" for name, about in commands.items())
        print(f"usage: {program} COMMAND [OPTIONS]\n\n{help_text.format(commands=listed)}", end="")
        return 0
    name, *rest = args
    if name not in commands:
        found = near(name, commands)
        hint = f"did you mean {found}?" if found else f"known are {', '.join(commands)}"
        raise UserError(f"unknown command {name!r} of {program}; {hint}")
    return cast(int, command_module(package, name).main(rest))


def command_module(package: str, name: str) -> types.ModuleType:
    """Import the module that holds a command."""
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    is_package = hasattr(module, "__path__")
    return importlib.import_module(f"{module.__name__}.__main__") if is_package else module


def command_options(package: str, name: str) -> Any:
    """Return the dataclass of a command's options, such as ToAccuracyCommand of to-accuracy."""
    return getattr(command_module(package, name), f"{name.title().replace('-', '')}Command")


def run_command(command: Callable[[Sequence[str]], int]) -> None:
    """Run a command with the program's arguments and exit with its code.

    A UserError becomes its sentence and exit code 2, a RunError its sentence and exit code 1,
    an interruption exit code 130; none shows a traceback. Characters that the output does not
    have are escaped. An output that takes no more is exit code 1, or 141 where its reader has
    gone.
    """
    with checked_output() as output:
        code = _outcome(command, output)
        with suppress(OSError):
            output.flush()
        if (refusal := output.refusal) is not None:
            discard(output)
            if isinstance(refusal, BrokenPipeError):  # whoever read it has gone
                code = code or 141
            else:
                _print_error(f"standard output takes no more ({refusal.strerror})")
                code = code or 1
    sys.exit(code)


def _outcome(command: Callable[[Sequence[str]], int], output: Output) -> str | int | None:
    """Return the exit code of a command, after saying what was wrong."""
    try:
        return command(sys.argv[1:])
    except SystemExit as end:  # of --help
        return end.code
    except (UserError, RunError) as error:
        _print_error(str(error))
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError:
        if output.refusal is None:
            raise
        return 0


def _print_error(text: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    with suppress(OSError):  # it takes no more either
        console.print(f"[bold red]error:[/] {escape(printable(text))}")
