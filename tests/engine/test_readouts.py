"""The readouts of a model: fitted to the logits of which epoch, and kept across resumptions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rayff import TrainConfig, load_model
from rayff.data.images import ImageSet
from rayff.data.loading import data_options, load_task
from rayff.data.order import sample
from rayff.engine import readout_fit
from rayff.engine.commands import Report
from rayff.engine.readout_fit import ReadoutFit
from rayff.learning import readout
from rayff.learning.fusion import fit_fusion
from rayff.learning.readout import Readouts, Temperatures, fit_temperatures
from tests.data.files import write_parquet
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.tiny_task import tiny_config


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    return tiny_config(tiny_task, tmp_path / "run")


def found_in(config: TrainConfig) -> Readouts:
    model = load_model(str(config.run_dir))
    temperatures = Temperatures(window=model.temperatures, last=model.last_temperature)
    return Readouts(window=model.window, temperatures=temperatures if model.calibrated else None)


def test_of_a_complete_run_they_are_those_of_its_validation_logits(config: TrainConfig) -> None:
    result = train_locally(config)
    model = load_model(result.run_dir)
    data = load_task(data_options(config))
    images, labels = (getattr(data.splits["valid"], name) for name in ("images", "labels"))
    logits = model.logits(torch.tensor(images)).numpy()
    expected = fit_temperatures(logits, labels, model.window)
    assert expected is not None
    assert model.temperatures == pytest.approx(expected.window, rel=1e-4)
    assert model.last_temperature == pytest.approx(expected.last, rel=1e-4)
    fusion = fit_fusion(logits, labels)
    assert fusion is not None
    assert model.fusion is not None
    np.testing.assert_allclose(model.fusion.weight, fusion.weight, atol=1e-2, rtol=1e-2)
    test = data.splits["test"]
    hits = fusion.hits(model.logits(torch.tensor(test.images)).numpy(), test.labels)
    record = result.metrics[-1]
    assert record.fusion_test_accuracy == pytest.approx(100 * hits / len(test.labels))
    assert result.metrics[0].fusion_test_accuracy is None, "fitted behind the last epoch"
    assert result.readouts == {
        "window": record.test_accuracy,
        "last": record.layer_test_accuracy[-1],
        "fusion": record.fusion_test_accuracy,
    }


def test_a_large_validation_split_is_sampled_from_every_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image folders are sorted by class: the first images would be of the first classes alone."""
    for split, each in (("train", 12), ("validation", 10), ("test", 4)):
        labels: list[int | None] = [label for label in range(4) for _ in range(each)]
        write_parquet(tmp_path / "data" / f"{split}.parquet", labels)
    monkeypatch.setattr(readout, "MAX_SAMPLE_BYTES", 12 * 4 * 4 * 4)  # 12 images
    monkeypatch.setattr(readout_fit, "MAX_LOGITS", 8 * 4 * 4)  # 8 of these for temperatures
    config = tiny_config(str(tmp_path / "data"), tmp_path / "run", epochs=1)
    model = load_model(train_locally(config).run_dir)
    valid = load_task(data_options(config)).splits["valid"]
    assert isinstance(valid, ImageSet)
    rows = sample(valid.labels, 12)
    labels_of, logits = valid.labels[rows], model.logits(torch.tensor(valid.images[rows])).numpy()
    assert np.bincount(labels_of).tolist() == [3, 3, 3, 3]
    fusion = fit_fusion(logits, labels_of)
    assert fusion is not None
    assert model.fusion is not None
    np.testing.assert_allclose(model.fusion.weight, fusion.weight, atol=1e-2, rtol=1e-2)
    few = sample(labels_of, 8)
    expected = fit_temperatures(logits[:, few], labels_of[few], model.window)
    assert expected is not None
    assert model.temperatures == pytest.approx(expected.window, rel=1e-4)


def test_a_stop_in_an_epoch_keeps_those_of_the_epoch_before(config: TrainConfig) -> None:
    train_locally(config, StopAfter(1))
    assert found_in(config) == Readouts(window=(0, 3)), "nothing was evaluated yet"
    train_locally(config, StopAfter(4), resume=True)  # behind the first epoch's evaluation
    first = found_in(config)
    assert first.temperatures is not None
    train_locally(config, StopAfter(2), resume=True)
    assert found_in(config) == first
    train_locally(config, StopAfter(3), resume=True)
    assert found_in(config) != first


def test_an_epoch_without_a_checkpoint_leaves_them_behind_where_its_window_is_another(
    tiny_task: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", epochs=4, checkpoint_every=3)
    first = train_locally(config, StopAfter(6)).metrics[-1]
    found = found_in(config)
    assert found == Readouts(window=(first.sip_first, first.sip_last))
    assert not load_model(tmp_path / "run").calibrated


def test_an_older_checkpoint_has_the_window_of_the_metrics(config: TrainConfig) -> None:
    record = train_locally(config, StopAfter(6)).metrics[-1]
    (manifest,) = Path(str(config.run_dir)).glob("checkpoints/step-00000004/manifest.json")
    saved = json.loads(manifest.read_text())
    del saved["readouts"], saved["sha256"]
    manifest.write_text(json.dumps(saved))
    train_locally(config, StopAfter(1), resume=True)
    assert found_in(config) == Readouts(window=(record.sip_first, record.sip_last))


def reports(logits: np.ndarray, labels: np.ndarray, sizes: list[int]) -> list[Report]:
    """Return a report for each chunk of a number of images, in batches of two."""
    found, start = [], 0
    for size in sizes:
        places = [slice(k, min(k + 2, start + size)) for k in range(start, start + size, 2)]
        start += size
        found.append(
            Report(
                started_s=0,
                busy_s=0,
                logits=tuple(logits[:, place] for place in places),
                labels=tuple(labels[place] for place in places),
            )
        )
    return found


def test_the_chunks_of_an_evaluation_change_nothing() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    logits = generator.normal(size=(2, 40, 3)).astype(np.float32)
    found = []
    for sizes in ([40], [8] * 5, [6, 34], [0, 40]):
        fit = ReadoutFit()
        for report in reports(logits, labels, sizes):
            fit.add("valid", report)
        for report in reports(logits, labels, [30, 10]):
            fit.add("test", report)
        readouts = fit.readouts((0, 1))
        assert readouts is not None
        assert readouts.fusion is not None
        found.append((readouts.temperatures, readouts.fusion.weight.tobytes(), fit.fusion_hits))
        expected = fit_fusion(logits, labels)
        assert expected is not None
        assert readouts.fusion.weight.tobytes() == expected.weight.tobytes()
        assert fit.fusion_hits == expected.hits(logits, labels)
    assert found == [found[0]] * 4


def test_without_logits_nothing_is_fitted() -> None:
    fit = ReadoutFit()
    fit.add("valid", Report(started_s=0, busy_s=0))
    assert fit.readouts((0, 0)) is None
    assert (fit.fusion, fit.fusion_hits) == (None, 0)
