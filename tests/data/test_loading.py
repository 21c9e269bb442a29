from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torchvision.datasets

from rayff.config.errors import UserError
from rayff.data.images import ImageSet
from rayff.data.tasks import TASKS, Task, TaskData, task_recipe
from tests.data.files import load, random_pixels, write_mnist, write_parquet


def write_task(folder, *, num_train=12, channels=1, class_names=None):
    """Three classes in turn; the image of row i of a split has i as its seed."""
    for split, num_images in (("train", num_train), ("test", 4)):
        labels = [row % 3 for row in range(num_images)]
        path = folder / f"{split}.parquet"
        write_parquet(path, labels, channels=channels, class_names=class_names)
    return folder


def rows_of(split):
    """Rows of the split's images in the file they came from, by their seeds."""
    row_of_pixels = {random_pixels(row).tobytes(): row for row in range(200)}
    return [row_of_pixels[image.tobytes()] for image in split.images]


class TestTheTable:
    def test_the_tasks_have_the_papers_validation_sizes_and_shapes(self):
        assert {
            name: (task.num_classes, task.image_channels, task.valid_size)
            for name, task in ((name, TASKS.load(name)) for name in TASKS.names)
        } == {
            "digits": (10, 1, 200),
            "mnist": (10, 1, 10_000),
            "fmnist": (10, 1, 10_000),
            "cifar10": (10, 3, 5_000),
            "cifar100": (100, 3, 5_000),
        }

    def test_the_classes_are_in_the_order_of_the_labels(self):
        assert TASKS.load("cifar10").class_names[:3] == ("airplane", "automobile", "bird")
        assert TASKS.load("cifar10").class_names[9] == "truck"
        assert TASKS.load("fmnist").class_names[9] == "Ankle boot"
        assert TASKS.load("mnist").class_names[7] == "7"
        cifar100 = TASKS.load("cifar100").class_names
        assert list(cifar100) == sorted(set(cifar100))

    @pytest.mark.parametrize("name", ["mnist", "fmnist", "cifar10", "cifar100"])
    def test_torchvision_knows_every_task_that_is_downloaded(self, name):
        assert hasattr(torchvision.datasets, TASKS.load(name).torchvision)

    def test_digits_has_defaults_of_its_own(self):
        assert task_recipe("digits") == {
            "batch_size": 16,
            "lr": 0.012,
            "lr_min": 0.0003,
            "epochs": 6,
        }

    def test_a_path_has_no_defaults_of_its_own(self, tmp_path):
        assert task_recipe(str(tmp_path)) == {}

    def test_the_defaults_of_an_unknown_task_are_a_mistake(self):
        with pytest.raises(UserError, match="there is no task 'digit'"):
            task_recipe("digit")


class TestNamedTasks:
    @pytest.fixture(autouse=True)
    def small_validation_splits(self, monkeypatch):
        for name in ("mnist", "fmnist", "cifar10"):
            monkeypatch.setitem(TASKS._entries, name, replace(TASKS.load(name), valid_size=3))

    def test_digits_needs_no_folder(self):
        digits = load("digits")
        assert (digits.name, digits.num_classes, digits.image_channels) == ("digits", 10, 1)
        assert [len(digits.train), len(digits.valid), len(digits.test)] == [1397, 200, 200]

    @pytest.mark.parametrize(
        ("task", "folder"),
        [("mnist", "mnist"), ("fmnist", "fmnist"), ("fmnist", "fashion_mnist"), ("mnist", ".")],
    )
    def test_parquet_is_found_under_the_names_of_the_task(self, tmp_path, task, folder):
        write_task(tmp_path / folder)
        data = load(task, data_dir=tmp_path)
        assert data.name == task
        assert data.num_classes == 10
        assert [len(data.train), len(data.valid), len(data.test)] == [9, 3, 4]

    def test_images_take_the_channels_of_the_task(self, tmp_path):
        write_task(tmp_path / "cifar10", channels=1)
        assert load("cifar10", data_dir=tmp_path).image_channels == 3

    def test_the_images_held_out_are_no_training_images(self, tmp_path):
        write_task(tmp_path / "mnist", num_train=20)
        data = load("mnist", data_dir=tmp_path)
        train, valid = rows_of(data.train), rows_of(data.valid)
        assert sorted(train + valid) == list(range(20))
        assert len(valid) == 3
        assert data.train.labels.tolist() == [row % 3 for row in train]
        assert data.valid.labels.tolist() == [row % 3 for row in valid]

    def test_the_same_images_are_held_out_each_time(self, tmp_path):
        write_task(tmp_path / "mnist", num_train=20)
        first, second = (load("mnist", data_dir=tmp_path) for _ in range(2))
        assert rows_of(first.valid) == rows_of(second.valid)

    def test_a_validation_file_is_used_in_place_of_held_out_images(self, tmp_path):
        write_task(tmp_path / "mnist")
        write_parquet(tmp_path / "mnist/validation.parquet", [2, 2])
        data = load("mnist", data_dir=tmp_path)
        assert data.valid.labels.tolist() == [2, 2]
        assert len(data.train) == 12

    def test_parquet_comes_before_torchvisions_files(self, tmp_path):
        write_task(tmp_path / "mnist")
        write_mnist(tmp_path / "MNIST/raw", [9] * 8, [9])
        assert load("mnist", data_dir=tmp_path).test.labels.tolist() == [0, 1, 2, 0]

    @pytest.mark.parametrize("download", [False, True])
    def test_torchvisions_files_are_read_where_there_is_no_parquet(self, tmp_path, download):
        write_mnist(tmp_path / "MNIST/raw", list(range(8)), [9, 8])
        data = load("mnist", data_dir=tmp_path, download=download)
        held_out = data.valid.labels.tolist()
        assert len(held_out) == 3
        assert sorted(data.train.labels.tolist() + held_out) == list(range(8))
        assert data.test.labels.tolist() == [9, 8]
        # the image of row i is the constant i, and here its label
        np.testing.assert_array_equal(data.train.images[:, 0, 5, 5], data.train.labels)

    def test_a_download_goes_to_the_cache_of_the_user_when_no_folder_is_given(
        self, tmp_path, monkeypatch
    ):
        def fetch(dataset):
            write_mnist(tmp_path / ".cache/rayff/MNIST/raw", [0, 1, 2, 3], [4])

        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(torchvision.datasets.MNIST, "download", fetch)
        assert load("mnist", download=True).test.labels.tolist() == [4]

    def test_a_failed_download_is_one_sentence_with_its_cause(self, tmp_path, monkeypatch):
        def no_network(dataset):
            raise OSError("Network is unreachable")

        monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
        with pytest.raises(UserError, match=r"cannot download CIFAR10 .*\(Network is unreach"):
            load("cifar10", data_dir=tmp_path, download=True)

    def test_without_a_folder_the_two_ways_to_the_data_are_named(self):
        with pytest.raises(UserError, match="'mnist' needs its data: .*--data-dir DIR .*--down"):
            load("mnist")

    def test_an_empty_folder_tells_all_that_was_looked_for(self, tmp_path):
        with pytest.raises(UserError, match="no data of the task 'fmnist'") as caught:
            load("fmnist", data_dir=tmp_path)
        message = str(caught.value)
        assert f"in {tmp_path}/fmnist, {tmp_path}/fashion_mnist, {tmp_path}, and" in message
        assert f"torchvision's files in {tmp_path}/FashionMNIST/raw" in message
        assert "--download" in message

    def test_a_missing_split_tells_the_files_that_are_there(self, tmp_path):
        write_parquet(tmp_path / "mnist/train.parquet", [0])
        with pytest.raises(UserError, match=r"mnist has no test split"):
            load("mnist", data_dir=tmp_path)

    def test_a_label_outside_the_tasks_classes_is_named_by_its_row(self, tmp_path):
        write_task(tmp_path / "mnist")
        write_parquet(tmp_path / "mnist/test.parquet", [0, 10])
        with pytest.raises(UserError, match=r"test\.parquet, row 1 .* label is 10, expected 0 to"):
            load("mnist", data_dir=tmp_path)

    def test_too_few_images_to_hold_some_out_are_a_mistake(self, tmp_path):
        write_task(tmp_path / "mnist", num_train=3)
        with pytest.raises(UserError, match=r"mnist has 3 training images, of which 3 .*held out"):
            load("mnist", data_dir=tmp_path)

    @pytest.mark.parametrize(("word", "near"), [("fminst", "fmnist"), ("cifar", "cifar10")])
    def test_an_unknown_name_is_answered_with_the_nearest_and_all_others(self, word, near):
        with pytest.raises(UserError) as caught:
            load(word)
        assert f"no task '{word}' (did you mean '{near}'?)" in str(caught.value)
        assert "digits, mnist, fmnist, cifar10, cifar100" in str(caught.value)
        assert "a folder or URI of images works too" in str(caught.value)

    def test_a_known_name_is_the_task_even_beside_a_folder_of_that_name(
        self, tmp_path, monkeypatch
    ):
        write_task(tmp_path / "digits")
        monkeypatch.chdir(tmp_path)
        assert len(load("digits").train) == 1397


class TestPaths:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.folder = tmp_path / "shapes"

    def test_a_folder_of_parquet_is_a_task_named_after_it(self):
        write_task(self.folder)
        data = load(self.folder)
        assert (data.name, data.num_classes, data.image_channels) == ("shapes", 3, 1)
        assert data.class_names == ("0", "1", "2")
        np.testing.assert_array_equal(data.test.images[3, 0], random_pixels(3))

    def test_a_folder_beside_the_caller_needs_no_separator(self, monkeypatch):
        write_task(self.folder)
        monkeypatch.chdir(self.folder.parent)
        assert load("shapes").name == "shapes"

    def test_the_class_names_of_hugging_face_are_kept(self):
        write_task(self.folder, class_names=["disc", "ring", "square", "star"])
        assert load(self.folder).class_names == ("disc", "ring", "square", "star")

    def test_a_label_beyond_the_class_names_is_named_by_its_row(self):
        write_task(self.folder, class_names=["disc", "ring"])
        with pytest.raises(UserError, match=r"train\.parquet, row 2 .* label is 2, expected 0 to"):
            load(self.folder)

    def test_without_names_the_classes_are_the_labels_of_all_splits(self):
        write_task(self.folder)
        write_parquet(self.folder / "test.parquet", [0, 6])
        data = load(self.folder)
        assert data.class_names == ("0", "1", "2", "6")
        assert data.test.labels.tolist() == [0, 3]
        assert "labels 0, 1, 2, 6 became classes 0 to 3, in this order" in data.notes
        assert "no image of the train split is of class '6'" in data.notes

    @pytest.mark.parametrize(("num_train", "num_held_out"), [(2, 1), (19, 1), (20, 2), (57, 5)])
    def test_a_tenth_of_the_training_images_is_held_out(self, num_train, num_held_out):
        write_task(self.folder, num_train=num_train)
        data = load(self.folder)
        assert len(data.valid) == num_held_out
        assert sorted(rows_of(data.train) + rows_of(data.valid)) == list(range(num_train))

    def test_no_more_are_held_out_than_the_limit(self, monkeypatch):
        monkeypatch.setattr("rayff.data.splits.MAX_HELD_OUT", 4)
        write_task(self.folder, num_train=60)
        assert len(load(self.folder).valid) == 4

    def test_a_validation_split_is_used_where_there_is_one(self):
        write_task(self.folder)
        write_parquet(self.folder / "valid.parquet", [1])
        data = load(self.folder)
        assert data.valid.labels.tolist() == [1]
        assert len(data.train) == 12

    def test_a_missing_train_split_tells_what_is_there(self):
        write_parquet(self.folder / "test.parquet", [0])
        write_parquet(self.folder / "data/rest.parquet", [0])
        with pytest.raises(
            UserError,
            match=r"shapes has no train split: expected train\.parquet .* holds data/, test\.par",
        ):
            load(self.folder)

    def test_an_empty_folder_is_named(self):
        self.folder.mkdir()
        with pytest.raises(UserError, match="no folder .*shapes, or nothing in it: give"):
            load(self.folder)

    @pytest.mark.parametrize("path", ["nowhere/shapes", "~/nowhere"])
    def test_a_path_that_leads_nowhere_is_named(self, path):
        with pytest.raises(
            UserError, match="there is no folder .*nowhere.*, or nothing in it: give the folder"
        ):
            load(path)

    def test_a_file_in_place_of_its_folder_is_a_mistake(self):
        write_task(self.folder)
        with pytest.raises(
            UserError, match=r"no folder .*train\.parquet, or nothing in it: give the folder that"
        ):
            load(str(self.folder / "train.parquet"))


def images_of(*labels, channels=3, size=4):
    images = np.zeros((len(labels), channels, size, size), np.uint8)
    return ImageSet(images=images, labels=np.array(labels, np.int64))


def returns_data(**splits):
    train, valid, test = images_of(0, 1, 1), images_of(0), images_of(1)
    splits = {"train": train, "valid": valid, "test": test} | splits
    return TaskData(name="mine", class_names=("yes", "no"), **splits)


without_test = partial(returns_data, test=images_of())
of_two_sizes = partial(returns_data, valid=images_of(0, size=5))
grey_and_coloured = partial(returns_data, test=images_of(0, channels=1))
counts_from_one = partial(returns_data, train=images_of(1, 2))
counts_below_zero = partial(returns_data, valid=images_of(-1, 1))


def returns_something_else():
    return {"train": []}


def fails():
    raise OSError("the disk is gone")


class TestImportPaths:
    def test_a_function_returns_the_data(self):
        data = load(f"{__name__}:returns_data")
        assert (data.name, data.class_names, data.image_channels) == ("mine", ("yes", "no"), 3)
        assert task_recipe(f"{__name__}:returns_data") == {}

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("returns_something_else", " returned dict: return a TaskData"),
            ("fails", r": calling it failed \(OSError: the disk is gone\)"),
            ("no_such_function", f": {__name__} has no 'no_such_function'"),
            ("without_test", " returned no test images: every split needs one"),
            (
                "of_two_sizes",
                r" returned valid images of shape \(3, 5, 5\), and train .* of \(3, 4, 4\): .*",
            ),
            ("grey_and_coloured", r" returned test images of shape \(1, 4, 4\), and train .*"),
            (
                "counts_from_one",
                " returned train labels from 1 to 2 for 2 class names: count them from 0, in .*",
            ),
            ("counts_below_zero", " returned valid labels from -1 to 1 for 2 class names: .*"),
        ],
    )
    def test_another_object_is_a_mistake(self, name, sentence):
        with pytest.raises(UserError, match=f"^--task {__name__}:{name}{sentence}$"):
            load(f"{__name__}:{name}")


def test_a_task_cannot_be_changed():
    task = Task(name="x", class_names=("a",), image_channels=1, valid_size=1)
    with pytest.raises(AttributeError):
        task.name = "y"  # type: ignore[misc]
    assert task.recipe == {}


@pytest.mark.parametrize("task", ["x" * 5000, "a\0b", "\ud800"], ids=["long", "zero", "surrogate"])
def test_a_name_that_no_folder_can_have_is_a_mistake(task, tmp_path):
    with pytest.raises(UserError, match="there is no task"):
        load(task)
    with pytest.raises(UserError, match="there is no folder"):
        load(f"{task}/{task}")
    with pytest.raises(UserError, match="no data of the task 'mnist'"):
        load("mnist", data_dir=tmp_path / task)


def test_a_home_directory_that_is_none_is_a_mistake():
    for arguments in ({"task": "~nobody-here/x"}, {"task": "mnist", "data_dir": "~nobody-here"}):
        with pytest.raises(UserError, match="no such home directory; write the folder's whole"):
            load(**arguments)
