"""Labels of every kind become classes, and what was mapped is said."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.data.classes import RawLabels, map_classes


def mapped(train, test=None, *, names=None, test_names=None, task=None):
    """Map the labels of two splits."""
    splits = {"train": (train, names), "test": (train if test is None else test, test_names)}
    raw = {
        split: RawLabels(
            values=values if isinstance(values, pa.Array) else pa.array(values),
            names=known,
            place=lambda row, split=split: f"{split}.parquet, row {row}",
        )
        for split, (values, known) in splits.items()
    }
    return map_classes(raw, task)


@pytest.mark.parametrize(
    ("labels", "names", "classes", "note"),
    [
        ([0, 2, 1], ("0", "1", "2"), [0, 2, 1], None),
        ([1, 3, 2], ("1", "2", "3"), [0, 2, 1], "labels 1, 2, 3 became classes 0 to 2"),
        ([0, 900, 5], ("0", "5", "900"), [0, 2, 1], "labels 0, 5, 900 became classes 0 to 2"),
        ([2.0, 0.0, 1.0], ("0", "1", "2"), [2, 0, 1], None),
        (["gnu", "ant"], ("ant", "gnu"), [1, 0], "'ant', 'gnu' became classes 0 to 1"),
        (["10", "9", "1"], ("1", "9", "10"), [2, 1, 0], "'1', '9', '10' became classes 0 to 2"),
        ([True, False], ("false", "true"), [1, 0], "'false', 'true' became classes 0 to 1"),
        (pa.array([1, 0], pa.uint8()), ("0", "1"), [1, 0], None),
        (pa.array(["b", "a"]).dictionary_encode(), ("a", "b"), [1, 0], "'a', 'b' became"),
        (pa.array([3, 1]).dictionary_encode(), ("1", "3"), [1, 0], "labels 1, 3 became"),
        (pa.array(["b", "a"], pa.large_string()), ("a", "b"), [1, 0], "'a', 'b' became"),
    ],
    ids=str,
)
def test_labels_become_classes(labels, names, classes, note):
    found = mapped(labels)
    assert found.names == names
    assert found.labels["train"].tolist() == classes
    assert found.labels["train"].dtype == np.int64
    assert len(found.notes) == (note is not None)
    assert note is None or found.notes[0].startswith(note)


def test_names_of_the_data_stay_with_their_numbers():
    found = mapped([1, 0], names=("zebra", "ant"))
    assert found.names == ("zebra", "ant")
    assert found.labels["train"].tolist() == [1, 0]
    assert found.notes == ()


def test_a_split_with_names_in_another_order_is_matched_by_name():
    found = mapped([0, 1, 2], [0, 1, 2], names=("a", "b", "c"), test_names=("c", "a", "b"))
    assert found.labels["test"].tolist() == [2, 0, 1]
    assert "the test split names its classes in another order" in found.notes[0]


def test_splits_with_other_names_contradict_each_other():
    with pytest.raises(UserError, match="test split names 2 classes, 'a', 'x', but .*'a', 'b'"):
        mapped([0, 1], names=("a", "b"), test_names=("a", "x"))


class TestOfATask:
    TASK = ("T-shirt/top", "Trouser", "Bag")

    def test_names_may_be_written_otherwise(self):
        found = mapped([0, 1], names=("t - shirt / top", "trouser", "BAG"), task=self.TASK)
        assert found.names == self.TASK
        assert found.labels["train"].tolist() == [0, 1]
        assert found.notes == ("1 of 3 classes have no image at all",)

    def test_another_order_is_matched(self):
        found = mapped([0, 1, 2], names=("Bag", "Trouser", "T-shirt/top"), task=self.TASK)
        assert found.labels["train"].tolist() == [2, 1, 0]
        assert "the train split names its classes in another order" in found.notes[0]

    @pytest.mark.parametrize(
        "names", [("0", "1", "2"), ("Trouser", "Bag"), ("Bag", "bag", "Trouser")], ids=str
    )
    def test_other_names_contradict_the_task(self, names):
        with pytest.raises(UserError, match="contradicts the task: its classes, .*--task DIR"):
            mapped([0, 1], names=names, task=self.TASK)

    def test_words_are_matched(self):
        found = mapped(["bag", "trouser"], task=self.TASK)
        assert found.labels["train"].tolist() == [2, 1]
        with pytest.raises(UserError, match="the label 'sock', but the task's classes are"):
            mapped(["bag", "sock"], task=self.TASK)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, None], "train.parquet, row 1: the label is null; correct or drop that row"),
        (["a", None], "train.parquet, row 1: the label is null"),
        ([0, -1], "train.parquet, row 1: the label is -1, expected 0 or more"),
        ([0.0, 0.5], "train.parquet, row 1: the label is 0.5, not a whole number"),
        ([0.0, float("nan")], "train.parquet, row 1: the label is nan, not a whole number"),
        ([0.0, float("inf")], "train.parquet, row 1: the label is inf, not a whole number"),
        (pa.array([0, 2**63], pa.uint64()), "row 1: the label is 9223372036854775808, which is"),
        ([4, 4], "all images have the same label"),
        (["x\ny", "z"], r"a label, 'x\ny', is no plain text: correct it"),
        (range(70_000), "the labels have 70,000 different values, more than 65,536 classes"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_refused(labels, sentence):
    with pytest.raises(UserError) as caught:
        mapped(labels)
    assert sentence in str(caught.value)


def test_splits_of_several_types_are_refused():
    with pytest.raises(UserError, match=r"several types \(int64 in train, string in test\)"):
        mapped([0, 1], ["0", "1"])


def test_classes_that_one_split_lacks_are_said():
    found = mapped(["a", "b", "a"], ["b", "c"])
    assert found.names == ("a", "b", "c")
    assert found.notes[1:] == (
        "no image of the train split is of class 'c'",
        "no image of the test split is of class 'a'",
    )


@given(
    train=st.lists(st.integers(0, 2**40), min_size=2),
    test=st.lists(st.integers(0, 2**40), min_size=1),
)
def test_whole_numbers_keep_their_order(train: list[int], test: list[int]):
    values = sorted({*train, *test})
    if len(values) < 2:
        return
    found = mapped(train, test)
    assert [int(name) for name in found.names] == values
    assert [values[label] for label in found.labels["train"]] == train
    assert [values[label] for label in found.labels["test"]] == test
