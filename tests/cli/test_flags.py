"""How all commands read their flags."""

from dataclasses import dataclass
from typing import Literal

import pytest

from rayff.cli import parse
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Every kind of field that the commands have."""

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
    size: int = 3
    """How large."""
    loud: bool = False
    """Whether to shout."""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UserError("--size must be 0 or more")


def read(*args: str, default: Flags | None = None) -> Flags:
    return parse(Flags, module="m", description="Reads.", args=args, default=default)


def test_no_flags_leave_the_defaults() -> None:
    assert read() == Flags()
    assert read(default=Flags(cuts=(1,), loud=True)) == Flags(cuts=(1,), loud=True)


def test_optional_flags_read_what_they_hold() -> None:
    args = ["--count=4", "--rate", "1e-3", "--where", "x", "--kind", "b", "--cuts", "5,9,13"]
    assert read(*args) == Flags(count=4, rate=0.001, where="x", kind="b", cuts=(5, 9, 13))


def test_dashes_and_underscores_are_the_same() -> None:
    for flag in ("--batch-size", "--batch_size"):
        run = parse(TrainConfig, module="m", description="", args=[flag, "7"])
        assert run.batch_size == 7


def test_help_shows_types_and_only_real_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help", default=Flags(rate=0.5))
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for part in (
        "--count INT How many. Default: enough, but not more. --rate",
        "--rate FLOAT How fast. (default: 0.5) --where",
        "--where STR Where to. --kind",
        "--kind {a,b} Which. --cuts",
        "--cuts N,N,... Where to cut. --size",
        "--size INT How large. (default: 3) --loud",
    ):
        assert part in text
    assert "None" not in text


@pytest.mark.parametrize(
    "args", [["--count", "x"], ["--kind", "c"], ["--cuts", "5,x"], ["--unknown", "1"]]
)
def test_what_cannot_be_read_ends_with_code_2(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        read(*args)
    assert exit_info.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_a_user_error_of_the_dataclass_comes_through() -> None:
    with pytest.raises(UserError, match="^--size must be 0 or more$"):
        read("--size", "-1")
