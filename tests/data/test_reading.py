"""Rows of Parquet files become arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.data.columns import Choice
from rayff.data.images import ImageFormat
from rayff.data.parquet import class_names, read_source
from rayff.data.reading import read_images
from tests.data.files import (
    encoded,
    image_structs,
    load,
    location,
    png,
    random_pixels,
    write_columns,
    write_parquet,
)


def read_split(paths, channels, preferred=("label", "fine_label")):
    source, _ = read_source([location(path) for path in paths], Choice(), preferred)
    labels = source.labels.to_numpy().astype(np.int64)
    return read_images(source, labels, ImageFormat(channels, 32), cached=False)[0]


class TestReading:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_png_images_come_back_pixel_for_pixel_with_their_labels(self, tmp_path, channels):
        path = write_parquet(tmp_path / "train.parquet", [2, 0, 1], channels=channels)
        split = read_split([path], channels=channels)
        assert split.labels.tolist() == [2, 0, 1]
        assert split.images.shape == (3, channels, 32, 32)
        for row in range(3):
            pixels = random_pixels(row, channels=channels).reshape(32, 32, channels)
            np.testing.assert_array_equal(split.images[row], pixels.transpose(2, 0, 1))

    def test_shards_are_read_one_after_the_other(self, tmp_path):
        first = write_parquet(tmp_path / "a.parquet", [5, 6], [png(10), png(11)])
        second = write_parquet(tmp_path / "b.parquet", [7], [png(12)])
        third = write_parquet(tmp_path / "c.parquet", [4], [png(13)])
        split = read_split([first, second, third], channels=1)
        assert split.labels.tolist() == [5, 6, 7, 4]
        for row, seed in enumerate([10, 11, 12, 13]):
            np.testing.assert_array_equal(split.images[row, 0], random_pixels(seed))

    @pytest.mark.parametrize("more", [0, 4096], ids=["by one thread", "by several"])
    def test_many_rows_keep_their_order_over_reads_and_row_groups(self, tmp_path, more):
        colours = [
            encoded(np.full((32, 32), row % 251, np.uint8)) + bytes(more) for row in range(5000)
        ]
        table = pa.table({"image": image_structs(colours), "label": np.arange(5000)})
        pq.write_table(table, tmp_path / "train.parquet", row_group_size=700)
        split = read_split([tmp_path / "train.parquet"], channels=1)
        assert split.images[:, 0, 31, 31].tolist() == [row % 251 for row in range(5000)]
        assert split.labels.tolist() == list(range(5000))

    def test_plain_binary_images_are_read(self, tmp_path):
        path = write_columns(tmp_path / "train.parquet", image=[png(4)], label=[0])
        split = read_split([path], channels=1)
        np.testing.assert_array_equal(split.images[0, 0], random_pixels(4))

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
    def test_the_other_names_of_the_columns_and_any_integer_are_read(self, tmp_path, kind):
        path = write_columns(
            tmp_path / "train.parquet",
            img=image_structs([png(4), png(5)]),
            fine_label=pa.array([1, 0], kind),
            coarse_label=["x", "y"],
        )
        split = read_split([path], channels=1)
        assert split.labels.tolist() == [1, 0]
        np.testing.assert_array_equal(split.images[1, 0], random_pixels(5))

    def test_the_class_names_are_those_of_hugging_face(self, tmp_path):
        path = write_parquet(tmp_path / "train.parquet", [0], class_names=["ant", "bee"])
        assert class_names(pq.read_schema(path), "label") == ("ant", "bee")

    @pytest.mark.parametrize(
        "metadata",
        [
            None,
            {"other": "x"},
            {"huggingface": "not json"},
            {"huggingface": '{"info": {"features": {"label": {"dtype": "int64"}}}}'},
            {"huggingface": "[]"},
        ],
        ids=str,
    )
    def test_without_such_metadata_there_are_no_class_names(self, tmp_path, metadata):
        path = tmp_path / "train.parquet"
        table = pa.table({"image": image_structs([png(0)]), "label": [0]})
        pq.write_table(table.replace_schema_metadata(metadata), path)
        assert class_names(pq.read_schema(path), "label") is None

    @pytest.mark.parametrize(
        ("images", "channels"),
        [
            ([png(0), png(1)], 1),
            ([encoded(np.zeros((4, 4), np.uint16)), png(1)], 1),
            ([encoded(np.zeros((4, 4), np.bool_)), png(1)], 1),
            ([png(0, channels=3), png(1)], 3),
            ([png(1), png(0, channels=3)], 3),
        ],
        ids=["8 bits", "16 bits", "black and white", "first of colour", "last of colour"],
    )
    def test_all_images_tell_grey_from_colour(self, tmp_path, images, channels):
        for split in ("train", "test"):
            write_parquet(tmp_path / f"{split}.parquet", [0, 1], images)
        assert load(tmp_path).image_channels == channels

    def test_a_colour_image_that_no_sample_has_seen_makes_the_whole_data_set_colour(
        self, tmp_path
    ):
        images = [png(0)] * 3000
        images[1501] = encoded(np.full((32, 32, 3), (200, 10, 10), np.uint8))
        labels = [row % 2 for row in range(3000)]
        write_parquet(tmp_path / "train.parquet", labels, images)
        write_parquet(tmp_path / "test.parquet", [0, 1])
        data = load(tmp_path)
        assert data.image_channels == 3
        whole = np.concatenate([data.train.images, data.valid.images])
        red = (whole == np.array([200, 10, 10])[None, :, None, None]).all(axis=(1, 2, 3))
        assert red.sum() == 1
