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
from tests.data.files import write_parquet
from tests.helpers.colour_run import pixels, write_run, write_task
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

    def test_without_pruning_the_largest_logits_decide(self, run: Path) -> None:
        evaluation = evaluate(run, prune=False)
        assert evaluation.window == (0, 3)
        assert evaluation.accuracy == pytest.approx(100 / 7)
        assert evaluation.confusion.tolist() == [[0, 3, 0], [0, 1, 2], [1, 0, 0]]

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
        logits = np.array([[0, 1], [5, 0], [0, 3], [2, 0]], np.float32)
        found = list(surest_mistakes(images, logits, 2))
        assert [(m.true, m.predicted) for m in found] == [(0, 1), (1, 0)]
        expected = [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))]
        assert [m.probability for m in found] == pytest.approx(expected)


def test_a_limit_takes_the_first_images(run: Path) -> None:
    evaluation = evaluate(run, limit=4)
    assert evaluation.num_images == evaluation.confusion.sum() == 4
    assert evaluation.accuracy == 100
