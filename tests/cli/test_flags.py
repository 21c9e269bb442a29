"""How all commands read their options, and what they say to a wrong one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Literal

import pytest
import tyro

from rayff.cli import names, parse, run_command
from rayff.config.errors import UserError
from rayff.models.zoo import ARCHITECTURES
from rayff.train import TrainCommand


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every kind of field that the commands have."""

    file: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE")]]
    """The file."""
    count: int | None = None
    """How many. Default: enough,
    but not more."""
    rate: float | None = None
    """How fast."""
    where: str | None = None
    """Where to."""
    kind: Literal["a", "b"] | None = None
    """Which."""
    cuts: tuple[int, ...] | None = None
    """Where to cut."""
    shares: tuple[float, ...] | None = None
    """When."""
    size: int = 3
    """How large."""
    loud: bool = False
    """Whether to shout."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Whether to hurry."""
    arch: str = "vgg"
    """One of {architectures}, but not of {these}."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UserError("--size must be 0 or more")


def read(*args: str, default: Options | None = None) -> Options:
    return parse(Options, module="rayff.x", description="Reads.", args=args, default=default)


def test_no_options_leave_the_defaults() -> None:
    assert read("f") == Options(file="f")
    default = Options(file="f", cuts=(1,), loud=True)
    assert read(default=default) == default


def test_optional_values_are_read_as_what_they_hold() -> None:
    args = ["--count=4", "--rate", "1e-3", "--where", "x", "--kind", "b", "--cuts", "5,9,13"]
    assert read("f", *args, "--shares", "0.5,1,1e-3") == Options(
        **{"file": "f", "count": 4, "rate": 0.001, "where": "x", "kind": "b"},
        **{"cuts": (5, 9, 13), "shares": (0.5, 1.0, 0.001)},
    )


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
def test_dashes_and_underscores_are_the_same(flag: str) -> None:
    run = parse(TrainCommand, module="rayff.train", description="", args=[flag, "7"])
    assert run.batch_size == 7


@pytest.mark.parametrize("value", ["resnet", "my_package.networks:build", "some/folder"])
def test_a_registered_name_is_not_the_only_value(value: str) -> None:
    assert read("f", "--arch", value).arch == value


def test_help_shows_types_registered_names_and_only_real_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        read("--help", default=Options(file="f", rate=0.5))
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for part in (
        "usage: rayff x [-h]",
        "--count INT How many. Default: enough, but not more. --rate",
        "--rate FLOAT How fast. (default: 0.5) --where",
        "--where STR Where to. --kind",
        "--kind {a,b} Which. --cuts",
        "--cuts N,N,... Where to cut. --shares",
        "--shares X,X,... When. --size",
        "--size INT How large. (default: 3) --loud",
        "--loud, --no-loud Whether to shout. --quick Whether to hurry.",
        f"One of {', '.join(ARCHITECTURES.names)}, but not of {{these}}. (default: vgg)",
    ):
        assert part in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("f --count x", "--count must be a whole number, not 'x'"),
        ("f --count=1.5", "--count must be a whole number, not '1.5'"),
        ("f --count 4 --count=", "--count must be a whole number, not ''"),
        ("f --rate fast", "--rate must be a number, not 'fast'"),
        ("f --cuts 5,x", "--cuts must be whole numbers with commas between them, not '5,x'"),
        ("f --shares 0.5,", "--shares must be numbers with commas between them, not '0.5,'"),
        ("f --kind c", "--kind must be one of a, b, not 'c'"),
        ("f --kind None", "--kind must be one of a, b, not 'None'"),
        ("f --size -1", "--size must be 0 or more"),
        ("f --count", "--count needs a value{see}"),
        ("f --where --loud", "--where needs a value{see}"),
        ("f g", "unexpected argument 'g'{see}"),
        ("f --loud=yes", "unexpected argument 'yes'{see}"),
        ("", "FILE is missing{see}"),
        ("f --szie 1", "unknown option --szie (did you mean --size?){see}"),
        ("f --Size=1", "unknown option --Size (did you mean --size?){see}"),
        ("f -size 1", "unknown option -size (did you mean --size?){see}"),
        ("f --no-lod", "unknown option --no-lod (did you mean --no-loud?){see}"),
        ("f --no-quick", "unknown option --no-quick{see}"),
        ("f --file x", "unknown option --file{see}"),
        ("--momentum 0.9", "unknown option --momentum{see}"),
        ("f --model vgg", "unknown option --model (did you mean --arch?){see}"),
        (
            "f --model=vgg --lr=1 --loud --rat=2",
            "unknown options --model (did you mean --arch?), --lr, "
            "--rat (did you mean --rate?){see}",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    args: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        read(*args.split())
    assert str(caught.value) == sentence.format(see="; see rayff x --help")
    assert capsys.readouterr() == ("", "")


def test_a_line_end_in_an_option_is_escaped() -> None:
    with pytest.raises(UserError, match=r"^unknown option '--a\\nb'; see"):
        read("f", "--a\nb")


@pytest.mark.parametrize("flag", ["--tyro-print-completion", "--tyro_write_completion"])
def test_a_command_alone_is_not_completed(flag: str) -> None:
    with pytest.raises(UserError, match="rayff --tyro-write-completion bash FILE"):
        read(flag, "bash", "x")


@pytest.mark.parametrize(
    ("spec", "typed"),
    [
        (None, "rayff bench step"),
        ("rayff.__main__", "python -m rayff bench step"),
        ("rayff.bench.__main__", "python -m rayff.bench step"),
        ("pytest.__main__", "rayff bench step"),
    ],
)
def test_usage_names_what_was_typed(
    spec: str | None,
    typed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = SimpleNamespace(__spec__=None if spec is None else SimpleNamespace(name=spec))
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(SystemExit):
        parse(Options, module="rayff.bench step", description="", args=["--help"])
    assert capsys.readouterr().out.startswith(f"usage: {typed} [-h]")


@pytest.mark.parametrize(
    "placeholder",
    ["architectures", "tasks", "losses", "optimizers", "augmentations", "kernels", "loggers"],
)
def test_placeholders_stand_for_names(placeholder: str) -> None:
    found = names(placeholder)
    assert found
    assert all(isinstance(name, str) for name in found)


def test_an_error_ends_the_program_with_code_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(args: object) -> int:
        raise UserError("[red]x[/] is \x1b[31m wrong")

    with pytest.raises(SystemExit) as exit_info:
        run_command(command)
    assert exit_info.value.code == 2
    assert capsys.readouterr() == ("", "error: [red]x[/] is \\x1b[31m wrong\n")
