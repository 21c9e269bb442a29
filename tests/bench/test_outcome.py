import io
import json
from pathlib import Path

import pytest

from rayff.bench import __main__ as program
from rayff.bench.outcome import Outcome, at_least_one, check_save, in_turns, machine, spread
from rayff.config.errors import UserError


def test_works_take_turns_after_a_warm_up():
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    measured = in_turns({"a": lambda: work("a"), "b": lambda: work("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert measured == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_median_stands_with_the_least_and_the_most():
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00-3.00)"
    assert spread([0.25], scale=1000, digits=0) == "250 (250-250)"


def test_the_file_says_which_machine_and_settings(tmp_path: Path):
    outcome = Outcome("step", {"arch": "tinycnn"})
    outcome.figures["layers"] = [1, 2]
    outcome.save(str(tmp_path / "new" / "figures.json"))
    saved = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert saved["benchmark"] == "step"
    assert saved["settings"] == {"arch": "tinycnn"}
    assert saved["layers"] == [1, 2]
    assert saved["machine"].keys() == machine().keys()


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    outcome = Outcome("step", {})
    outcome.table("A title", *(f"column {number}" for number in range(12))).add_row("x" * 20)
    outcome.show()
    assert "column 11" in file.getvalue()
    assert "x" * 20 in file.getvalue()


class TestMistakes:
    def test_a_file_that_cannot_be_written_is_said_before_the_work(self, tmp_path: Path):
        with pytest.raises(UserError, match="--save .* cannot be written; name another file"):
            check_save(str(tmp_path))
        check_save(str(tmp_path / "new" / "file.json"))
        check_save(None)

    def test_a_count_below_one(self):
        with pytest.raises(UserError, match="--batch-size must be 1 or more, not 0"):
            at_least_one(repeats=1, batch_size=0)

    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            (["step", "--arch", "tinycn"], "tinycnn"),
            (["step", "--batch-size", "0"], "--batch-size must be 1 or more"),
            (["step", "--repeats", "0"], "--repeats must be 1 or more"),
            (["scaling", "--stages", "0,2"], "--stages must be 1 or more"),
            (["memory", "--arch", "tinycnn,foo"], "foo"),
            (["memory", "--kernels", "fast"], "unknown 'fast'"),
            (["backprop", "--target", "101"], "--target must be"),
            (["backprop", "--epochs", "0"], "--epochs must be 1 or more"),
            (["backprop", "--task", "mnist"], "--data-dir"),
        ],
        ids=str,
    )
    def test_bad_input_gets_its_sentence(self, args: list[str], sentence: str):
        with pytest.raises(UserError, match=sentence):
            program.main(args)
