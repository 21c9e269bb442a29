"""What all benchmarks share: options and their mistakes, turns, tables and the file of figures."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from rayff.bench import __main__ as program
from rayff.bench.command import BenchCommand
from rayff.bench.results import Results, as_text, in_turns, processor
from rayff.config.errors import UserError


def test_works_take_turns_after_a_warm_up():
    order: list[str] = []

    def work(name: str) -> int:
        order.append(name)
        return len(order)

    measured = in_turns({"a": lambda: work("a"), "b": lambda: work("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert measured == {"a": [3, 5], "b": [4, 6]}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("step_s", 0.00531, "5.31 ms"),
        ("seconds", [3.0, 1.0, 2.0], "2.00 s (1.00 s to 3.00 s)"),
        ("images_per_s", 41350.3, "41350"),
        ("state_bytes", 3 * 2**20, "3 MiB"),
        ("speedup", 1.951, "1.95x"),
        ("share_of_ceiling", 0.98, "98.0%"),
        ("busy", [0.5, 1.0], "50.0% 100.0%"),
        ("best_accuracy", 95.434, "95.43%"),
        ("replayed", [None, 8, 2, 5], "5 (2 to 8)"),
        ("seconds", [3.0], "3.00 s"),
        ("joules", 1234.5, "1234 J"),
        ("seconds", None, "-"),
        ("noticed_s", [None], "-"),
        ("shape", (3, 1), "(3, 1)"),
    ],
)
def test_a_figure_has_the_unit_of_its_name(name: str, value: Any, shown: str):
    assert as_text(name, value) == shown


def test_the_file_says_which_machine_and_settings(tmp_path: Path):
    results = Results("step", {"arch": "tinycnn"})
    results.figures["layers"] = [1, 2]
    results.notes.append("a note")
    results.save(str(tmp_path / "new" / "figures.json"))
    saved = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert saved == {
        "benchmark": "step",
        "machine": results.machine,
        "settings": {"arch": "tinycnn"},
        "layers": [1, 2],
        "notes": ["a note"],
    }


def test_an_emulated_processor_is_called_that(monkeypatch: pytest.MonkeyPatch):
    name = processor()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("RAYFF_CXXFLAGS", "-march=x86-64-v3")
    limits = "ATEN_CPU_CAPABILITY=avx2 RAYFF_CXXFLAGS=-march=x86-64-v3"
    assert processor() == f"emulated on {name}: {limits}"


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    results = Results("step", {})
    names = [f"column-{number}" for number in range(12)]
    results.table("A title", [dict.fromkeys(names, "x" * 10)], " ".join(names))
    results.show()
    assert "column-11" in file.getvalue()
    assert "x" * 10 in file.getvalue()


class TestMistakes:
    def test_a_file_that_cannot_be_written_is_refused_before_the_work(self, tmp_path: Path):
        with pytest.raises(UserError, match="--save .* cannot be written; name another file"):
            BenchCommand(save=str(tmp_path))
        BenchCommand(save=str(tmp_path / "new" / "file.json"))

    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            (["step", "--arch", "tinycn"], "tinycnn"),
            (["step", "--batch-size", "0"], "--batch-size must be 1 or more, not 0"),
            (["step", "--repeats", "0"], "--repeats must be 1 or more"),
            (["step", "--kernels", "conv", "--autotune"], "leave one of the two out"),
            (["scaling", "--stages", "0,2"], "--stages must be 1 or more"),
            (["memory", "--arch", "tinycnn,foo"], "foo"),
            (["memory", "--kernels", "fast"], "unknown 'fast'"),
            (["memory", "--methods", "linaer"], "--methods: unknown 'linaer'; known are goodness"),
            (["to-accuracy", "--targets", "50,101"], "--targets must be .* not 50,101"),
            (["to-accuracy", "--lrs", "0"], "--lrs must be above 0"),
            (["to-accuracy", "--epochs", "0"], "--epochs must be 1 or more"),
            (["to-accuracy", "--task", "mnist"], "--data-dir"),
            (["to-accuracy", "--plot", "/"], "--plot / cannot be written"),
            (["endurance", "--minutes", "0"], "--minutes and --every-s must be more than 0"),
            (["chaos", "--kinds", "stage,moon"], "--kinds stage,moon: known are stage, node"),
            (["kernels", "--batch-size", "128,0"], "--batch-size must be 1 or more"),
            (["kernels", "--arch", "resnett"], "resnet"),
        ],
        ids=str,
    )
    def test_bad_input_gets_its_sentence(self, args: list[str], sentence: str):
        with pytest.raises(UserError, match=sentence):
            program.main(args)
