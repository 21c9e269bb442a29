"""The attack on trainings in short: a few faults of each kind."""

import json
from pathlib import Path

import pytest

from rayff.bench import chaos


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trainings_whose_stages_nodes_and_driver_are_killed_end_with_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    code = chaos.main(
        ["--faults", "6", "--seed", "3", "--nodes", "2", "--epochs", "10", "--save", str(file)]
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    rounds = json.loads(file.read_text())["rounds"]
    faults = [fault for each in rounds for fault in each["faults"]]
    assert len(faults) >= 6
    assert {fault["kind"] for fault in faults} == {"stage", "node", "driver"}
    assert all(each["identical"] for each in rounds)
    noticed = [fault["noticed_s"] for fault in faults if fault["noticed_s"] is not None]
    assert noticed
    assert max(noticed) < 60
    assert f"{len(rounds)} of {len(rounds)} trainings bit-identical" in " ".join(printed.split())


class TestTheAccountOfAFault:
    """From events that are written by hand."""

    def test_is_found_in_the_events_behind_it(self, tmp_path: Path) -> None:
        events = [
            {"time": 100.0, "event": "running"},
            {"time": 111.0, "event": "failure", "step": 14, "snapshot": 8},
            {"time": 115.5, "event": "running"},
            {"time": 130.0, "event": "running"},
        ]
        (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
        faults = [
            chaos.Fault("stage", "process 1", at_s=110.0),
            chaos.Fault("driver", "driver", at_s=120.0),
            chaos.Fault("node", "node", at_s=140.0),
        ]
        chaos.account(tmp_path, faults)
        found = [(fault.noticed_s, fault.recovered_s, fault.replayed) for fault in faults]
        assert found == [(1.0, 5.5, 6), (None, 10.0, None), (None, None, None)]
