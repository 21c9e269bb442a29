"""Data sets as people have them: right pixels and labels, or a sentence; never silence.

The colour of a picture is its class, unless said otherwise.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from rayff.config.errors import UserError
from rayff.data.columns import Choice
from rayff.data.tasks import TaskData
from tests.data.files import image_structs, load

COLOURS = [(230, 30, 30), (30, 200, 30), (30, 30, 230), (220, 220, 30)]
NAMES = ["cat", "dog", "eel", "fox"]
ROWS = {"train": [row % 4 for row in range(40)], "test": [row % 4 for row in range(12)]}
Rgb = tuple[int, int, int]


def picture(colour: Rgb, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def pictures(labels: Sequence[int]) -> list[bytes]:
    return [encode(picture(COLOURS[label])) for label in labels]


def write(path: Path, images: list[bytes], labels: Any, *, names: Any = None, **columns: str):
    image, label = columns.get("image", "image"), columns.get("label", "label")
    table = pa.table({image: image_structs([*images]), label: labels})
    if names is not None:
        features = {label: {"_type": "ClassLabel", "names": names}}
        metadata = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_splits(folder: Path, label_of: Callable[[int], Any] = int, **options: Any) -> Path:
    for split, labels in ROWS.items():
        words = pa.array([label_of(label) for label in labels])
        write(folder / f"{split}.parquet", pictures(labels), words, **options)
    return folder


def shown(images: NDArray[np.uint8]) -> list[int]:
    """The class whose colour an image shows, by its middle pixel."""
    middle = images[:, :, images.shape[2] // 2, images.shape[3] // 2].astype(int)
    distance = np.abs(middle[:, None] - np.array(COLOURS)[None]).sum(axis=2)
    return distance.argmin(axis=1).tolist()


def assert_right(data: TaskData, counts: dict[str, int] | None = None) -> None:
    """Every image shows its class, and no image was lost or seen twice."""
    for split, images in data.splits.items():
        assert shown(images.images) == images.labels.tolist(), split
    found = {split: len(images) for split, images in data.splits.items()}
    assert found == (counts or {"train": 36, "valid": 4, "test": 12})


class TestLayouts:
    @pytest.mark.parametrize(
        "name",
        [
            "{split}.parquet",
            "data/{split}-00000-of-00001.parquet",
            "plain_text/{split}-00000-of-00001.parquet",
            "default/{split}/0000.parquet",
            "{split}/0000.parquet",
            "{split}/part-7.parquet",
            "some/data/{split}-00000-of-00001-0123456789abcdef.parquet",
        ],
    )
    def test_parquet(self, tmp_path: Path, name: str):
        for split, labels in ROWS.items():
            write(tmp_path / name.format(split=split), pictures(labels), labels)
        data = load(tmp_path)
        assert_right(data)
        place = name.partition("/")[0]
        said = f"the data set is the one in {tmp_path}/{place}"
        assert (said in data.notes) == (place in {"plain_text", "default", "some"})

    def test_several_configurations_are_offered(self, tmp_path: Path):
        for config in ("large", "small"):
            write_splits(tmp_path / config)
        with pytest.raises(UserError, match="several data sets: .*large or .*small"):
            load(tmp_path)

    @pytest.mark.parametrize("suffix", ["png", "PNG", "jpeg", "webp", "bmp"])
    @pytest.mark.parametrize("valid", [None, "val", "valid", "validation"])
    def test_image_folders(self, tmp_path: Path, suffix: str, valid: str | None):
        rows = ROWS if valid is None else {**ROWS, valid: [0, 1, 2]}
        for split, labels in rows.items():
            for number, label in enumerate(labels):
                path = tmp_path / split / NAMES[label] / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(COLOURS[label]).save(path)
        (tmp_path / "train/cat/.DS_Store").write_text("x")
        (tmp_path / "train/cat/notes.txt").write_text("x")
        data = load(tmp_path)
        assert data.class_names == tuple(NAMES)
        assert_right(data, valid and {"train": 40, "valid": 3, "test": 12})
        assert any("1 file below" in note and "cat/notes.txt" in note for note in data.notes)

    def test_class_folders_without_splits_are_split(self, tmp_path: Path):
        for number, label in enumerate(ROWS["train"]):
            path = tmp_path / NAMES[label] / "images" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(COLOURS[label]).save(path)
        data = load(tmp_path)
        assert_right(data, {"train": 33, "valid": 3, "test": 4})
        assert "4 of the training images are held out for test: there is no such split" in (
            data.notes
        )

    def test_a_column_split(self, tmp_path: Path):
        labels = [*ROWS["train"], *ROWS["test"]]
        words = ["train"] * 40 + ["validation", "test", "extra"] * 4
        table = pa.table({"image": image_structs([*pictures(labels)]), "label": labels})
        shuffled = np.random.default_rng(0).permutation(52)
        table = table.append_column("split", pa.array(words)).take(shuffled)
        pq.write_table(table, tmp_path / "all.parquet", row_group_size=7)
        data = load(tmp_path)
        assert_right(data, {"train": 40, "valid": 4, "test": 4})
        assert "rows whose column 'split' says 'extra' are left out" in data.notes

    def test_validation_in_place_of_a_test_split(self, tmp_path: Path):
        write_splits(tmp_path)
        (tmp_path / "test.parquet").rename(tmp_path / "validation.parquet")
        data = load(tmp_path)
        assert_right(data)
        assert "there is no labelled test split: the validation split is the test split" in (
            data.notes
        )

    def test_files_that_belong_to_no_split_or_class_are_named(self, tmp_path: Path):
        write_splits(tmp_path / "tables")
        write(tmp_path / "tables" / "train_2.parquet", pictures(ROWS["test"]), ROWS["test"])
        data = load(tmp_path / "tables")
        assert_right(data)
        note = f"1 file left out: no name of a split ({tmp_path}/tables/train_2.parquet)"
        assert note in data.notes
        for number, label in enumerate(ROWS["train"]):
            path = tmp_path / "folders" / "train" / NAMES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(COLOURS[label]).save(path)
        train = tmp_path / "folders" / "train"
        picture(COLOURS[0]).save(train / "loose.png")
        os.mkfifo(train / NAMES[0] / "pipe.png")
        notes = load(tmp_path / "folders").notes
        assert f"1 file below {train} left out: in no folder of a class (loose.png)" in notes
        pipe = f"{NAMES[0]}/pipe.png"
        assert f"1 file below {train} left out: no image files ({pipe})" in notes

    def test_a_training_split_alone(self, tmp_path: Path):
        write(tmp_path / "train.parquet", pictures(ROWS["train"]), ROWS["train"])
        assert_right(load(tmp_path), {"train": 33, "valid": 3, "test": 4})

    def test_an_empty_shard_is_skipped(self, tmp_path: Path):
        write_splits(tmp_path)
        (tmp_path / "train.parquet").rename(tmp_path / "train-00001-of-00002.parquet")
        write(tmp_path / "train-00000-of-00002.parquet", [], pa.array([], pa.int64()))
        assert_right(load(tmp_path))

    def test_saved_to_disk(self, tmp_path: Path):
        for split, labels in ROWS.items():
            folder = tmp_path / split
            folder.mkdir(parents=True)
            table = pa.table({"image": image_structs([*pictures(labels)]), "label": labels})
            halves = [table.slice(0, 9), table.slice(9)]
            files = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
            for part, name in zip(halves, files, strict=True):
                with pa.ipc.new_stream(folder / name, table.schema) as stream:
                    stream.write_table(part, max_chunksize=4)
            state = {"_data_files": [{"filename": name} for name in files]}
            (folder / "state.json").write_text(json.dumps(state))
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [*ROWS]}))
        assert_right(load(tmp_path))
        assert_right(load(tmp_path, limit=8), {"train": 8, "valid": 4, "test": 8})

    def test_what_is_no_data_set_is_listed(self, tmp_path: Path):
        (tmp_path / "readme.md").write_text("x")
        with pytest.raises(UserError, match="is no data set: expected .* it holds readme.md"):
            load(tmp_path)


class TestColumnsAndLabels:
    @pytest.mark.parametrize(
        ("image", "label"),
        [("jpg", "cls"), ("pixel_values", "labels"), ("img", "coarse_label"), ("image", "kind")],
    )
    def test_other_columns(self, tmp_path: Path, image: str, label: str):
        data = load(write_splits(tmp_path, image=image, label=label))
        assert_right(data)
        assert any(repr(label) in note for note in data.notes)

    def test_two_label_columns(self, tmp_path: Path):
        for split, labels in ROWS.items():
            write(tmp_path / f"{split}.parquet", pictures(labels), labels)
            table = pq.read_table(tmp_path / f"{split}.parquet")
            other = pa.array([0] * len(labels))
            pq.write_table(table.append_column("class", other), tmp_path / f"{split}.parquet")
        with pytest.raises(UserError, match="--label-column label or class"):
            load(tmp_path)
        assert_right(load(tmp_path, choice=Choice(label="label")))

    @pytest.mark.parametrize(
        ("label_of", "names"),
        [
            (lambda label: NAMES[label], NAMES),
            (float, "0 1 2 3".split()),
            (lambda label: label + 1, "1 2 3 4".split()),
            (lambda label: (0, 5, 900, 2000)[label], "0 5 900 2000".split()),
            (str, "0 1 2 3".split()),
        ],
        ids=["words", "floats", "from one", "gaps", "digits"],
    )
    def test_labels(self, tmp_path: Path, label_of: Callable[[int], Any], names: list[str]):
        data = load(write_splits(tmp_path, label_of))
        assert data.class_names == tuple(names)
        assert_right(data)

    def test_an_unlabelled_test_split(self, tmp_path: Path):
        write_splits(tmp_path)
        write(tmp_path / "test.parquet", pictures(ROWS["test"]), [-1] * 12)
        data = load(tmp_path)
        assert_right(data, {"train": 33, "valid": 3, "test": 4})
        assert "the test split is unlabelled (all -1), and is not used" in data.notes

    def test_names_in_another_order(self, tmp_path: Path):
        train, test = ROWS["train"], ROWS["test"]
        write(tmp_path / "train.parquet", pictures(train), train, names=NAMES)
        back = [3 - label for label in test]
        write(tmp_path / "test.parquet", pictures(test), back, names=NAMES[::-1])
        assert_right(load(tmp_path))

    def test_sorted_data_with_a_limit(self, tmp_path: Path):
        for split, count in (("train", 50), ("test", 20)):
            ordered = [label for label in range(4) for _ in range(count)]
            write(tmp_path / f"{split}.parquet", pictures(ordered), ordered)
        data = load(tmp_path, limit=16)
        assert_right(data, {"train": 16, "valid": 16, "test": 16})
        whole = load(tmp_path).splits
        for split, images in data.splits.items():
            share = 16 / len(whole[split])
            wanted = share * np.bincount(whole[split].labels)
            assert np.abs(np.bincount(images.labels, minlength=4) - wanted).max() < 1
        again = load(tmp_path, limit=16)
        assert (again.train.images == data.train.images).all()

    def test_fashion_under_the_name_of_mnist(self, tmp_path: Path):
        names = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                 "Sneaker", "Bag", "Ankle boot"]  # fmt: skip
        write_splits(tmp_path, names=names)
        with pytest.raises(UserError, match="contradicts the task: its classes, 'T - shirt / to"):
            load("mnist", data_dir=tmp_path)

    def test_classes_in_the_test_split_alone(self, tmp_path: Path):
        write_splits(tmp_path)
        write(tmp_path / "train.parquet", pictures([0, 1] * 20), [0, 1] * 20)
        data = load(tmp_path)
        assert_right(data)
        assert "no image of the train split is of classes '2', '3'" in data.notes


class TestPixels:
    """Two pictures in turn, in Parquet; the labels say which."""

    def pair(self, folder: Path, first: bytes, second: bytes, **options: Any) -> TaskData:
        for split, count in (("train", 20), ("test", 5)):
            path = folder / f"{split}.parquet"
            write(path, [first, second] * count, [0, 1] * count)
        return load(folder, **options)

    def both(self, data: TaskData) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        images, labels = data.test.images, data.test.labels
        assert labels[:2].tolist() == [0, 1]
        return images[0], images[1]

    @pytest.mark.parametrize("orientation", range(2, 9))
    def test_orientation(self, tmp_path: Path, orientation: int):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:16, :24] = (250, 0, 0)  # a mark that no turn leaves in place
        upright = Image.fromarray(pixels)
        back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
                6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(Image.Transpose[back])
        data = self.pair(tmp_path, encode(upright), encode(stored, "PNG", exif=exif))
        first, second = self.both(data)
        np.testing.assert_array_equal(first, second)
        assert any("turned as their EXIF orientation" in note for note in data.notes)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_hidden_colours(self, tmp_path: Path, mode: str):
        images = []
        for hidden in (40, 200):
            pixels = np.full((32, 32), hidden, np.uint8)
            pixels[8:24, 8:24] = 120
            grey = Image.fromarray(pixels)
            alpha = Image.fromarray(np.where(pixels == 120, 255, 0).astype(np.uint8))
            if mode == "P":
                images.append(encode(grey.convert("P"), transparency=hidden))
            else:
                image = grey.convert(mode)
                image.putalpha(alpha)
                images.append(encode(image))
        data = self.pair(tmp_path, *images)
        expected = np.full((32, 32), 255, np.uint8)
        expected[8:24, 8:24] = 120
        for image in self.both(data):
            for channel in image:
                np.testing.assert_array_equal(channel, expected)
        assert any("transparent pixels, which were laid on white" in n for n in data.notes)

    @pytest.mark.parametrize("kind", [np.float32, np.int32])
    def test_values_of_no_known_range(self, tmp_path: Path, kind: Any):
        ramp = np.tile(np.linspace(0, 1, 32), (32, 1)).astype(kind)
        both = [encode(Image.fromarray(part), "TIFF") for part in (ramp, ramp.T.copy())]
        with pytest.raises(UserError, match=r"row 0 .*whose black and white are not known"):
            self.pair(tmp_path, *both)

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_sixteen_bits(self, tmp_path: Path, kind: str):
        dark, light = (
            encode(Image.fromarray(np.full((32, 32), value, np.uint16)), kind)
            for value in (0x1234, 0xF0FF)
        )
        data = self.pair(tmp_path, dark, light)
        first, second = self.both(data)
        assert (first == 0x12).all()
        assert (second == 0xF0).all()
        assert "50 of 50 images have 16 bits a channel, of which the upper 8 were kept" in (
            data.notes
        )

    def test_cmyk_is_what_a_viewer_shows(self, tmp_path: Path):
        red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
        cyan = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
        images = [encode(image, "JPEG", quality=95) for image in (red, cyan)]
        first, second = self.both(self.pair(tmp_path, *images))
        assert np.abs(first.mean(axis=(1, 2)) - [255, 0, 0]).max() < 4
        assert np.abs(second.mean(axis=(1, 2)) - [0, 255, 255]).max() < 4

    def test_the_first_of_several_frames(self, tmp_path: Path):
        frames = [picture(COLOURS[0]), picture(COLOURS[2])]
        moving = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        data = self.pair(tmp_path, moving, encode(picture(COLOURS[1])))
        assert shown(np.stack(self.both(data))) == [0, 1]
        assert "25 of 50 images have several frames, of which the first was taken" in data.notes

    def test_mixed_channels_and_sizes(self, tmp_path: Path):
        grey = encode(Image.new("L", (20, 20), 77))
        colour = encode(picture(COLOURS[3], (100, 100)))
        data = self.pair(tmp_path, grey, colour)
        first, second = self.both(data)
        assert (first == 77).all()
        assert shown(second[None]) == [3]
        assert data.original_sizes == "20x20 to 100x100"
        assert "25 of 50 images were enlarged" in data.notes
        assert "25 of 50 images were shrunk by more than half" in data.notes

    @pytest.mark.parametrize(
        ("resize", "height", "width"), [("crop", 32, 32), ("stretch", 32, 8), ("pad", 8, 8)]
    )
    def test_the_shape_of_wide_images(self, tmp_path: Path, resize: Any, height: int, width: int):
        wide = np.zeros((32, 128), np.uint8)
        wide[:, 48:80] = 255  # a square in the middle
        images = [encode(Image.fromarray(part)) for part in (wide, wide)]
        data = self.pair(tmp_path, *images, resize=resize)
        (image,) = self.both(data)[0]
        rows, columns = np.nonzero(image > 127)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
        word = {"crop": "cropped", "stretch": "stretched", "pad": "padded"}[resize]
        assert any(f"50 of 50 images were {word}" in note for note in data.notes)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_shrinking_averages(self, tmp_path: Path, kind: str):
        chequers = (np.indices((224, 224)).sum(0) % 2 * 255).astype(np.uint8)
        flat = np.full((224, 224), 128, np.uint8)
        images = [encode(Image.fromarray(part), kind) for part in (chequers, flat)]
        first, second = self.both(self.pair(tmp_path, *images))
        assert np.abs(first.astype(int) - second).max() <= 4

    @pytest.mark.parametrize("size", [8, 28, 64, 96])
    def test_any_size(self, tmp_path: Path, size: int):
        images = [encode(picture(COLOURS[label], (64, 64))) for label in (0, 1)]
        data = self.pair(tmp_path, *images, image_size=size)
        assert data.train.images.shape == (18 * 2, 3, size, size)
        assert shown(np.stack(self.both(data))) == [0, 1]

    def test_a_large_jpeg_is_nearly_what_it_is_when_it_is_decoded_as_a_whole(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        large = Image.fromarray(noise).resize((900, 700), Image.Resampling.BICUBIC)
        data = encode(large, "JPEG", quality=95)
        whole = Image.open(io.BytesIO(data)).convert("RGB").crop((100, 0, 800, 700))
        expected = np.asarray(whole.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        first, _ = self.both(self.pair(tmp_path, data, encode(picture(COLOURS[0]))))
        difference = np.abs(first.astype(int) - expected)
        assert difference.mean() < 1.5
        assert difference.max() < 16


class TestOptionsThatWouldBeIgnored:
    @pytest.mark.parametrize(
        ("task", "options", "sentence"),
        [
            ("FOLDER", {"data_dir": "x"}, "--data-dir: --task .* is a folder itself; leave"),
            ("FOLDER", {"download": True}, "--download: --task .* is a folder itself; leave"),
            ("digits", {"choice": Choice(label="y")}, "--label-column: --task digits has no col"),
            ("tests.data.test_loading:returns_data", {"data_dir": "x"}, "--data-dir: .* function"),
            (
                "tests.data.test_loading:returns_data",
                {"image_size": 64},
                "--image-size 64: .*4x4",
            ),
        ],
    )
    def test_they_are_refused(self, tmp_path, task: str, options: dict[str, Any], sentence: str):
        name = str(write_splits(tmp_path)) if task == "FOLDER" else task
        with pytest.raises(UserError, match=sentence):
            load(name, **options)

    def test_columns_of_image_folders(self, tmp_path: Path):
        for split in ROWS:
            for label, name in enumerate(NAMES):
                (tmp_path / split / name).mkdir(parents=True)
                picture(COLOURS[label]).save(tmp_path / split / name / "0.png")
        with pytest.raises(UserError, match="--image-column jpg: .* image files, which have no"):
            load(tmp_path, choice=Choice(image="jpg"))
