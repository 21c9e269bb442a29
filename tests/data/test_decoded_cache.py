"""Decoded images are kept, and recalled for the same files alone."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rayff.data import decoded_cache, reading
from tests.data.files import encoded, load, png, random_pixels, write_parquet


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Keep whatever is decoded, in a folder of the test's own."""
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "KEPT_S", 0.0)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, seed in (("train", 0), ("test", 9)):
        images = [png(seed + row, size=48, channels=3) for row in range(4)]
        write_parquet(tmp_path / "data" / f"{split}.parquet", [0, 1, 0, 1], images)
    return tmp_path / "data"


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(reading, "decode_all", decode)


def test_the_second_reading_decodes_nothing_and_says_the_same(cache, folder, monkeypatch):
    first = load(folder)
    forbid_decoding(monkeypatch)
    second = load(folder)
    for split in ("train", "valid", "test"):
        one, other = getattr(first, split), getattr(second, split)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert second.describe() == first.describe()
    assert second.notes == first.notes
    assert second.original_sizes == "48x48"


def test_a_copy_of_the_files_elsewhere_is_recalled(cache, folder, tmp_path, monkeypatch):
    load(folder)
    forbid_decoding(monkeypatch)
    folder.rename(tmp_path / "elsewhere")
    assert len(load(tmp_path / "elsewhere").test) == 4


@pytest.mark.parametrize(
    "options",
    [{"image_size": 24}, {"channels": 1}, {"limit": 2}],
    ids=["size", "channels", "rows"],
)
def test_other_options_decode_again(cache, folder, monkeypatch, options):
    load(folder)
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded again"):
        load(folder, **options)


def test_one_changed_image_is_decoded_whatever_its_date_and_size(cache, folder):
    before = load(folder)
    images = [png(9 + row, size=48, channels=3) for row in range(4)]
    images[2] = encoded(random_pixels(77, size=48, channels=3))
    write_parquet(folder / "test.parquet", [0, 1, 0, 1], images)
    after = load(folder)
    same = [
        np.array_equal(one, other)
        for one, other in zip(before.test.images, after.test.images, strict=True)
    ]
    assert same == [True, True, False, True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
        lambda file: save_file({"images": np.zeros((4, 3, 32, 32), np.uint8)}, file),
        lambda file: save_file(
            {"images": np.zeros((3, 3, 8, 8), np.uint8)}, file, {"survey": "1"}
        ),
    ],
    ids=["cut short", "empty", "one bit", "without facts", "of other images"],
)
def test_a_damaged_file_is_written_anew(cache, folder, damage):
    expected = load(folder).train.images
    for file in cache.iterdir():
        damage(file)
    np.testing.assert_array_equal(load(folder).train.images, expected)
    assert {file.stat().st_size > 4 * 3 * 32 * 32 for file in cache.iterdir()} == {True}


def test_a_cache_that_cannot_be_written_changes_nothing(cache, folder):
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    assert len(load(folder).train) == len(load(folder).train) > 0


def test_files_that_were_not_used_for_longest_go(cache, folder, monkeypatch):
    load(folder)
    train, test = sorted(cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    monkeypatch.setattr(decoded_cache, "MOST_BYTES", 1.5 * test.stat().st_size)
    load(folder, image_size=31)
    assert not train.exists()
    assert sum(file.stat().st_size for file in cache.iterdir()) <= decoded_cache.MOST_BYTES


def test_grey_images_of_a_data_set_with_colour_are_kept_in_colour(cache, tmp_path):
    """A first attempt takes them for grey."""
    images = [png(row % 50) for row in range(300)]
    images[250] = png(7, channels=3)
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [row % 2 for row in range(300)], images)
    first, second = load(tmp_path), load(tmp_path)
    assert first.image_channels == second.image_channels == 3
    np.testing.assert_array_equal(first.test.images, second.test.images)
