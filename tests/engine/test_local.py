"""The local backend: the same stages in this process, and the result of a training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayff import Trainer
from rayff.engine.run import TrainResult
from rayff.runs.metrics import read_metrics
from rayff.runs.run_directory import RunDirectory
from tests.helpers.mistakes import refused
from tests.helpers.runs import AtChunk, StopAfter, layer_files, train_locally
from tests.helpers.tiny_task import tiny_config
from tests.runs.test_metrics import record


class TestOptionsOfActors:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"elastic": "1:2"}, "--elastic 1:2"),
            ({"replicas": "1,2"}, "--replicas 1,2"),
            ({"replicas": "auto", "stages": 2}, "--replicas auto"),
            ({"rebalance": True}, "--rebalance"),
            ({"placement": "spread"}, "--placement spread"),
            ({"transport": "gloo"}, "--transport gloo"),
            ({"gpus_per_stage": 0.5}, "--gpus-per-stage 0.5"),
            ({"window": 3}, "--window 3"),
            ({"method": "bp", "workers": 2}, "--workers 2"),
            ({"logger": "mlflow"}, "--logger mlflow"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_are_refused_with_a_remedy(
        self, tiny_task: str, tmp_path: Path, options: dict[str, Any], named: str
    ) -> None:
        config = tiny_config(tiny_task, tmp_path / "run", **options)
        with refused(rf"^{named}[ :].*--backend local.* --backend ray$", tmp_path):
            Trainer(config, backend="local", quiet=True).fit()

    def test_an_unknown_backend_is_refused(self) -> None:
        with refused("--backend: unknown 'locl'.*did you mean 'local'"):
            Trainer({"task": "digits"}, backend="locl")  # type: ignore[arg-type]


class TestATraining:
    def test_has_the_threads_of_a_stage_and_gives_them_back(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        seen: list[int] = []
        config = tiny_config(tiny_task, tmp_path / "run", epochs=1, cpus_per_stage=2.5)
        train_locally(config, AtChunk(1, lambda: seen.append(torch.get_num_threads())))
        assert seen == [2]
        assert torch.get_num_threads() == 1

    def test_writes_out_what_it_resolved(self, tiny_task: str, tmp_path: Path) -> None:
        config = tiny_config(tiny_task, tmp_path / "run", epochs=1, chunk=1)
        Trainer(config, backend="local", quiet=True).fit()
        saved = RunDirectory(tmp_path / "run").read_config()
        assert saved.precision in ("fp32", "bf16")
        assert saved.rule == "fast"
        assert saved.kernels is not None
        assert len(saved.kernels.split(",")) == 4

    def test_stages_that_take_turns_are_busy_for_the_whole_time_together(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        config = tiny_config(tiny_task, tmp_path / "run", cuts=(1, 3), epochs=3, log_every=1)
        for each in train_locally(config).metrics:
            assert 0.5 < sum(each.stage_busy) <= 1
            assert 0 <= each.data_wait < each.stage_busy[0]

    def test_on_as_many_stages_as_are_asked_for_has_the_same_bits(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        files, cuts = [], []
        for number, plan in enumerate(
            ({}, {"stages": 3, "log_every": 1}, {"cuts": (1,)}, {"stages": 4})
        ):
            config = tiny_config(tiny_task, tmp_path / f"run-{number}", epochs=1, **plan)
            result = train_locally(config)
            files.append(layer_files(result.run_dir))
            cuts.append(result.metrics[0].cuts)
        assert [len(each) for each in cuts] == [0, 2, 1, 3]
        assert files == [files[0]] * 4


class TestTheResult:
    def test_of_a_complete_run(self, tiny_task: str, tmp_path: Path) -> None:
        result = train_locally(tiny_config(tiny_task, tmp_path / "run"))
        assert result.run_dir == tmp_path / "run"
        assert result.metrics == read_metrics(tmp_path / "run" / "metrics.parquet")
        assert (result.complete, result.epochs, result.stopped_by) == (True, 2, None)
        last = result.metrics[-1]
        assert repr(result) == f"<TrainResult {tmp_path}/run: complete, {last.reached}>"

    def test_of_a_stopped_run(self, tiny_task: str, tmp_path: Path) -> None:
        result = train_locally(tiny_config(tiny_task, tmp_path / "run"), StopAfter(1))
        assert not result.complete
        assert repr(result) == f"<TrainResult {tmp_path}/run: stopped, no epoch complete>"

    def test_is_a_table_of_the_last_epochs_in_a_notebook(self) -> None:
        records = [record(epoch) for epoch in range(1, 13)]
        result = TrainResult(run_dir=Path("runs/<b>"), metrics=records, epochs=12)
        html = result._repr_html_()
        assert "runs/&lt;b&gt;" in html
        assert html.count("<tr>") == 1 + 10
        assert "<td>12</td><td>4.1000</td><td>45.33</td><td>21.33</td>" in html
        assert "<td>2</td>" not in html
