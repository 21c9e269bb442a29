"""Trainings of benchmarks."""

import signal

import pytest

from rayff.bench.workload import completed
from rayff.engine.run import TrainResult


def test_a_training_that_a_signal_stops_ends_the_benchmark_and_is_no_measurement() -> None:
    result = TrainResult(run_dir="run", metrics=[], epochs=1)
    assert completed(result) is result
    with pytest.raises(SystemExit) as end:
        completed(TrainResult(run_dir="run", metrics=[], epochs=1, stopped_by=signal.SIGINT))
    assert end.value.code == 130
