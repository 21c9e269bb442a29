"""Evaluation of a network made by hand, against results worked out on paper."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rayff import load_model
from rayff.data.images import ImageSet
from rayff.engine.evaluation import (
    confusion_matrix,
    evaluate,
    most_confused,
    surest_mistakes,
)
from rayff.learning.readout import Temperatures
from tests.data.files import write_parquet
from tests.helpers.colour_run import fusion_of_layer, pixels, write_run, write_task
from tests.helpers.mistakes import refused


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="module")
def run(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "first", task)


def test_the_network_gives_the_logits_of_its_description(run: Path) -> None:
    red = torch.from_numpy(pixels(0)).permute(2, 0, 1)[None]
    goodness = load_model(run).logits(red)[:, 0]
    expected = torch.tensor([[5**0.5 / 2, 0, 0], [0, 2, 0], [0.25, 0, 0], [0.2, 0, 0]])
    torch.testing.assert_close(goodness, expected, atol=1e-4, rtol=0)


class TestEvaluate:
    def test_with_the_window_of_the_run(self, run: Path) -> None:
        evaluation = evaluate(run)
        assert evaluation.window == (0, 0)
        assert evaluation.num_images == 7
        assert evaluation.class_names == ("red", "green", "blue")
        assert evaluation.accuracy == pytest.approx(600 / 7)
        assert evaluation.confusion.tolist() == [[3, 0, 0], [1, 2, 0], [0, 0, 1]]

    def test_each_layer_alone(self, run: Path) -> None:
        expected = (600 / 7, 100 / 7, 600 / 7, 300 / 7)
        assert evaluate(run).layer_accuracy == pytest.approx(expected)

    def test_with_the_last_layer_alone(self, run: Path) -> None:
        """It calls everything red."""
        evaluation = evaluate(run, readout="last")
        assert (evaluation.readout, evaluation.window) == ("last", (0, 0))
        assert evaluation.accuracy == pytest.approx(300 / 7)
        assert evaluation.confusion.tolist() == [[3, 0, 0], [3, 0, 0], [1, 0, 0]]

    def test_with_the_fusion(self, task: Path, tmp_path: Path) -> None:
        """Of layer 1 alone, which takes each colour for the next one."""
        run = write_run(tmp_path / "run", task, fusion=fusion_of_layer(1))
        evaluation = evaluate(run, readout="fusion")
        assert evaluation.accuracy == pytest.approx(100 / 7)
        assert evaluation.confusion.tolist() == [[0, 3, 0], [0, 1, 2], [1, 0, 0]]

    def test_a_fusion_that_was_not_fitted_is_refused(self, run: Path) -> None:
        with refused("this model has no readout fusion"):
            evaluate(run, readout="fusion")

    def test_the_other_splits(self, run: Path) -> None:
        for split in ("valid", "train"):
            evaluation = evaluate(run, split=split)  # type: ignore[arg-type]
            assert (evaluation.accuracy, evaluation.num_images) == (100.0, 3)

    @pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
    def test_the_batch_size_changes_nothing(self, run: Path, batch_size: int) -> None:
        whole, parts = evaluate(run), evaluate(run, batch_size=batch_size)
        assert parts.layer_accuracy == whole.layer_accuracy
        assert np.array_equal(parts.confusion, whole.confusion)

    def test_data_of_other_classes_is_refused(self, run: Path, tmp_path: Path) -> None:
        other = write_task(tmp_path / "other", class_names=("red", "green", "violet"))
        moved = write_run(tmp_path / "run", other)
        with refused("the task 'other' has 3 classes .red, green, violet"):
            evaluate(moved)

    def test_data_of_other_channels_is_refused(self, run: Path, tmp_path: Path) -> None:
        for split in ("train", "validation", "test"):
            write_parquet(
                tmp_path / f"grey/{split}.parquet",
                [0, 1, 2],
                class_names=["red", "green", "blue"],
            )
        moved = write_run(tmp_path / "run", tmp_path / "grey")
        with refused("takes images of 3 channels.*'grey' have 1"):
            evaluate(moved)

    def test_an_unknown_split_is_refused(self, run: Path) -> None:
        with refused("'tset' is unknown; known are train, valid, test"):
            evaluate(run, split="tset")  # type: ignore[arg-type]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
    def test_a_missing_gpu_is_refused(self, run: Path) -> None:
        with refused("--device cuda: torch finds no GPU"):
            evaluate(run, device="cuda")


class TestReadouts:
    """Probabilities by hand: layer 0 gives the colour's class sqrt(5)/2 and the others 0."""

    TEMPERATURES = Temperatures(window=(0.5, 0.25), last=0.1)

    @pytest.fixture
    def run(self, task: Path, tmp_path: Path) -> Path:
        return write_run(
            tmp_path / "run",
            task,
            window=(0, 1),
            temperatures=self.TEMPERATURES,
            fusion=fusion_of_layer(0, factor=2.0),
        )

    def probability(self, *logits: float) -> float:
        return float(np.exp(max(logits)) / np.exp(logits).sum())

    def test_each_has_its_accuracy_and_its_mean_probability(self, run: Path) -> None:
        evaluation = evaluate(run)
        assert evaluation.calibrated
        root = 5**0.5 / 2
        # the sum of layers 0 and 1 has 2 for the next colour and sqrt(5)/2 for its own
        window, plain = self.probability(2 / 0.25, root / 0.25, 0), self.probability(2, root, 0)
        last, plain_last = self.probability(2.0, 0, 0), self.probability(0.2, 0, 0)
        fusion = self.probability(2 * root, 0, 0)
        expected = {
            "window": (100 / 7, 0.25, window, plain),
            "last": (300 / 7, 0.1, last, plain_last),
            "fusion": (600 / 7, 1.0, fusion, fusion),
        }
        assert evaluation.readouts.keys() == expected.keys()
        for name, (accuracy, temperature, probability, raw) in expected.items():
            score = evaluation.readouts[name]  # type: ignore[index]
            assert (score.accuracy, score.temperature) == (pytest.approx(accuracy), temperature)
            for found, value in ((score.reliability, probability), (score.uncalibrated, raw)):
                assert found.counts.sum() == 7
                assert found.mean_probability == pytest.approx(value, abs=1e-4)
                # all images have the same probability, and so are in one bin
                error = abs(accuracy / 100 - value)
                assert found.calibration_error == pytest.approx(error, abs=1e-4)

    def test_mistakes_have_the_probability_of_the_readout(self, run: Path) -> None:
        (mistake,) = evaluate(run, readout="fusion", num_mistakes=9).mistakes
        assert mistake.probability == pytest.approx(self.probability(5**0.5, 0, 0), abs=1e-4)
        mistakes = evaluate(run, num_mistakes=9).mistakes
        assert len(mistakes) == 6
        probability = self.probability(8, 2 * 5**0.5, 0)
        assert [each.probability for each in mistakes] == pytest.approx(
            [probability] * 6, abs=1e-4
        )

    def test_early_exit_at_every_threshold(self, run: Path) -> None:
        exits = evaluate(run).early_exits
        root = 5**0.5 / 2
        # all images stop behind layer 0, which is right for 6 of 7, or behind layer 1
        for kind, sure in (
            ("calibrated", self.probability(2 * root, 0, 0)),
            ("uncalibrated", self.probability(root, 0, 0)),
        ):
            for found in exits[kind]:
                layers, accuracy = (1, 6 / 7) if found.threshold < sure else (2, 1 / 7)
                assert (found.mean_layers, found.accuracy) == (layers, pytest.approx(accuracy))
        assert [found.threshold for found in exits["calibrated"]][::50] == [0.0, 0.5, 0.995]

    def test_without_temperatures_nothing_is_calibrated(self, task: Path, tmp_path: Path) -> None:
        evaluation = evaluate(write_run(tmp_path / "run", task))
        assert not evaluation.calibrated
        for score in evaluation.readouts.values():
            assert score.temperature == 1
            assert np.array_equal(score.reliability.counts, score.uncalibrated.counts)
        assert evaluation.readouts.keys() == {"window", "last"}


class TestConfusionMatrix:
    def test_rows_are_true_and_columns_predicted(self) -> None:
        labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 2, 1, 1, 1, 2])
        expected = [[1, 0, 1, 0], [0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
        assert confusion_matrix(labels, predicted, 4).tolist() == expected

    def test_the_most_confused_pairs(self) -> None:
        confusion = np.array([[9, 1, 0], [4, 0, 1], [0, 2, 50]])
        assert most_confused(confusion, 3) == [(1, 0, 4), (2, 1, 2), (0, 1, 1)]
        assert most_confused(confusion, 99) == [(1, 0, 4), (2, 1, 2), (0, 1, 1), (1, 2, 1)]

    def test_no_mistakes_no_pairs(self) -> None:
        assert most_confused(np.diag([3, 4]), 5) == []


class TestMistakes:
    def test_are_the_images_that_were_taken_for_another_class(self, run: Path) -> None:
        (mistake,) = evaluate(run, num_mistakes=5).mistakes
        assert (mistake.true, mistake.predicted) == (1, 0)  # red, and calls itself green
        assert np.array_equal(mistake.image, pixels(0).transpose(2, 0, 1))
        root = np.exp(np.sqrt(5) / 2)
        assert mistake.probability == pytest.approx(root / (root + 2), abs=1e-4)
        assert evaluate(run).mistakes == ()

    def test_come_with_the_surest_first(self) -> None:
        labels = np.array([0, 0, 0, 1])
        images = ImageSet(images=np.zeros((4, 1, 32, 32), np.uint8), labels=labels)
        probability = np.array([0.7, 0.99, 0.9, 0.8], np.float32)
        found = list(surest_mistakes(images, np.array([1, 0, 1, 0]), probability, 2))
        assert [(m.true, m.predicted) for m in found] == [(0, 1), (1, 0)]
        assert [m.probability for m in found] == pytest.approx([0.9, 0.8])


def test_a_limit_takes_the_first_images(run: Path) -> None:
    evaluation = evaluate(run, limit=4)
    assert evaluation.num_images == evaluation.confusion.sum() == 4
    assert evaluation.accuracy == 100
