import hashlib
import pickle  # noqa: TID251 - an attacker's files are made with it

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from rayff.config.errors import UserError
from rayff.data.images import ImageFormat, Survey
from rayff.data.torchvision_files import read_torchvision, torchvision_folder
from tests.data.files import write_idx, write_mnist

NO_NETWORK = "<urlopen error [Errno -3] Temporary failure in name resolution>"


def read_splits(class_name, root, *, channels=1, download):
    return read_torchvision(
        class_name,
        root,
        form=ImageFormat(channels, 32),
        num_classes=10,
        download=download,
        survey=Survey(),
    )


@pytest.mark.parametrize("class_name", ["MNIST", "FashionMNIST"])
def test_the_idx_files_are_read(tmp_path, class_name):
    write_mnist(tmp_path / class_name / "raw", [3, 1, 4], [5, 9])
    train, test = read_splits(class_name, tmp_path, download=False)
    assert train.labels.tolist() == [3, 1, 4]
    assert test.labels.tolist() == [5, 9]
    assert train.images.shape == (3, 1, 32, 32)
    assert train.images[:, 0, 31, 31].tolist() == [0, 1, 2]


def test_28_by_28_pixels_are_resized_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
    folder = tmp_path / "MNIST/raw"
    write_mnist(folder, [0], [0])
    write_idx(folder / "train-images-idx3-ubyte", pixels)
    train, _ = read_splits("MNIST", tmp_path, download=False)
    resized = Image.fromarray(pixels[0]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(train.images[0, 0], np.asarray(resized))


class TestCifar:
    @pytest.fixture(autouse=True)
    def two_small_batches(self, tmp_path, monkeypatch):
        """CIFAR-10's files with three images, under checksums of their own."""
        self.pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
        self.folder = tmp_path / "cifar-10-batches-py"
        self.folder.mkdir()
        rows = self.pixels.reshape(3, 3072)
        cifar10 = torchvision.datasets.CIFAR10
        train = self.write("data_batch_1", {"data": rows[:2], "labels": [7, 2]})
        monkeypatch.setattr(cifar10, "train_list", [["data_batch_1", train]])
        test = self.write("test_batch", {"data": rows[2:], "labels": [9]})
        monkeypatch.setattr(cifar10, "test_list", [["test_batch", test]])
        meta = self.write("batches.meta", {"label_names": list("abcdefghij")})
        monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": meta})

    def write(self, name, content):
        data = pickle.dumps(content)
        (self.folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def test_its_images_have_their_channels_first(self, tmp_path):
        train, test = read_splits("CIFAR10", tmp_path, channels=3, download=False)
        np.testing.assert_array_equal(train.images, self.pixels[:2])
        np.testing.assert_array_equal(test.images, self.pixels[2:])
        assert train.labels.tolist() == [7, 2]
        assert test.labels.tolist() == [9]

    def test_a_batch_with_another_checksum_is_never_unpickled(self, tmp_path, monkeypatch):
        (self.folder / "data_batch_1").write_bytes(pickle.dumps({"data": [], "labels": []}))
        loads = []
        monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: loads.append(args))
        with pytest.raises(UserError, match="cifar-10-batches-py are incomplete or damaged"):
            read_splits("CIFAR10", tmp_path, channels=3, download=False)
        assert loads == []


@pytest.mark.parametrize(
    ("class_name", "folder"),
    [("MNIST", "MNIST/raw"), ("CIFAR10", "cifar-10-batches-py"), ("CIFAR100", "cifar-100-python")],
)
def test_the_folder_is_torchvisions_own(tmp_path, class_name, folder):
    assert torchvision_folder(class_name, tmp_path) == tmp_path / folder


def test_a_missing_file_is_a_mistake_with_the_folder_and_the_remedy(tmp_path):
    write_mnist(tmp_path / "MNIST/raw", [0], [0])
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        UserError,
        match=r"MNIST/raw are incomplete or damaged .*: delete that folder and pass --download",
    ):
        read_splits("MNIST", tmp_path, download=False)


def test_a_file_cut_short_is_a_mistake_with_the_folder_and_the_remedy(tmp_path):
    write_mnist(tmp_path / "MNIST/raw", [0, 1], [0])
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match="MNIST/raw are incomplete or damaged"):
        read_splits("MNIST", tmp_path, download=False)


def test_images_without_as_many_labels_are_a_mistake(tmp_path):
    write_mnist(tmp_path / "MNIST/raw", [0, 1], [0])
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(UserError, match="MNIST/raw are incomplete or damaged"):
        read_splits("MNIST", tmp_path, download=False)


def test_a_label_outside_the_classes_is_a_mistake(tmp_path):
    write_mnist(tmp_path / "MNIST/raw", [0, 10], [0])
    with pytest.raises(UserError, match="MNIST/raw .* damaged .a label is not in 0 to 9"):
        read_splits("MNIST", tmp_path, download=False)


def test_a_failed_download_is_one_sentence_with_its_cause(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError(f"Error downloading train:\nTried a mirror, got:\n{NO_NETWORK}\n")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(UserError, match="cannot download MNIST to .*--data-dir DIR") as caught:
        read_splits("MNIST", tmp_path, download=True)
    assert NO_NETWORK in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["training.pt", "test.pt"])
def test_files_of_an_old_torchvision_are_never_unpickled(tmp_path, monkeypatch, name):
    loads = []
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: loads.append(args))
    write_mnist(tmp_path / "MNIST/raw", [0], [0])
    (tmp_path / "MNIST/processed").mkdir()
    (tmp_path / "MNIST/processed" / name).touch()
    with pytest.raises(UserError, match=rf"MNIST/processed/{name} .* can hold code .*: delete"):
        read_splits("MNIST", tmp_path, download=False)
    assert loads == []
