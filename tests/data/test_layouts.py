import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.config.errors import UserError
from rayff.data.parquet import (
    class_names,
    find_splits,
    image_channels,
    parquet_files,
    read_split,
)
from tests.data.files import (
    encoded,
    image_structs,
    png,
    random_pixels,
    write_columns,
    write_parquet,
)


class TestFindingTheFiles:
    @pytest.fixture(autouse=True)
    def empty_files(self, tmp_path):
        def touch(*names):
            for name in names:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

        self.folder, self.touch = tmp_path, touch

    def found(self):
        return {
            split: [str(path.relative_to(self.folder)) for path in files]
            for split, files in find_splits(self.folder).items()
        }

    @pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
    def test_the_name_of_a_file_tells_its_split(self, name):
        self.touch("train.parquet", "test.parquet", f"{name}.parquet", "notes.txt", "x.parquet")
        assert self.found() == {
            "train": ["train.parquet"],
            "test": ["test.parquet"],
            "valid": [f"{name}.parquet"],
        }

    def test_shards_come_in_the_order_of_their_numbers(self):
        names = [f"train-{shard:05}-of-00003.parquet" for shard in range(3)]
        self.touch(*reversed(names))
        assert self.found() == {"train": names}

    def test_the_numbers_of_shards_are_compared_as_numbers(self):
        names = [f"train-{shard}-of-12.parquet" for shard in range(12)]
        self.touch(*names)
        assert self.found() == {"train": names}

    def test_a_subfolder_data_is_searched_too(self):
        self.touch("data/train-00000-of-00001-4746b8785c874cc7.parquet", "test.parquet")
        assert self.found() == {
            "train": ["data/train-00000-of-00001-4746b8785c874cc7.parquet"],
            "test": ["test.parquet"],
        }

    def test_a_folder_without_parquet_has_no_splits(self):
        assert self.found() == {}
        assert find_splits(self.folder / "missing") == {}

    def test_a_missing_shard_is_named(self):
        self.touch("train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
        with pytest.raises(
            UserError,
            match=r"has 2 of the 3 shards of its train split: "
            r"train-00001-of-00003\.parquet is missing; add it",
        ):
            find_splits(self.folder)

    def test_the_first_of_many_missing_shards_is_named_and_the_others_counted(self):
        self.touch("test-00000-of-00004.parquet")
        with pytest.raises(
            UserError, match=r"test-00001-of-00004\.parquet is missing, and 2 more"
        ):
            find_splits(self.folder)

    @pytest.mark.parametrize(
        "rival",
        [
            "data/train.parquet",
            "train-00000-of-00001.parquet",
            "data/train-00000-of-00001.parquet",
        ],
    )
    def test_two_sources_for_one_split_are_both_named(self, rival):
        self.touch("train.parquet", rival)
        with pytest.raises(UserError, match="more than one set of files for the train") as caught:
            find_splits(self.folder)
        assert f"{self.folder}/train.parquet" in str(caught.value)
        assert f"{self.folder}/{rival}" in str(caught.value)
        assert "keep one of them" in str(caught.value)

    def test_two_shards_of_one_number_are_refused(self):
        self.touch("train-00000-of-00002-aa.parquet", "train-00000-of-00002-bb.parquet")
        with pytest.raises(UserError, match="more than one set of files for the train"):
            find_splits(self.folder)

    def test_every_parquet_file_is_listed_whatever_its_name(self):
        self.touch("b.parquet", "data/a.parquet", "c.csv")
        assert [path.name for path in parquet_files(self.folder)] == ["b.parquet", "a.parquet"]


class TestReading:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_png_images_come_back_pixel_for_pixel_with_their_labels(self, tmp_path, channels):
        path = write_parquet(tmp_path / "train.parquet", [2, 0, 1], channels=channels)
        split = read_split([path], channels=channels, num_classes=3)
        assert split.labels.tolist() == [2, 0, 1]
        assert split.images.shape == (3, channels, 32, 32)
        for row in range(3):
            pixels = random_pixels(row, channels=channels).reshape(32, 32, channels)
            np.testing.assert_array_equal(split.images[row], pixels.transpose(2, 0, 1))

    def test_shards_are_read_one_after_the_other(self, tmp_path):
        first = write_parquet(tmp_path / "a.parquet", [5, 6], [png(10), png(11)])
        second = write_parquet(tmp_path / "b.parquet", [7], [png(12)])
        third = write_parquet(tmp_path / "c.parquet", [4], [png(13)])
        split = read_split([first, second, third], channels=1, num_classes=8)
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
        split = read_split([tmp_path / "train.parquet"], channels=1, num_classes=5000)
        assert split.images[:, 0, 31, 31].tolist() == [row % 251 for row in range(5000)]
        assert split.labels.tolist() == list(range(5000))

    def test_plain_binary_images_are_read(self, tmp_path):
        path = write_columns(tmp_path / "train.parquet", image=[png(4)], label=[0])
        split = read_split([path], channels=1, num_classes=1)
        np.testing.assert_array_equal(split.images[0, 0], random_pixels(4))

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
    def test_the_other_names_of_the_columns_and_any_integer_are_read(self, tmp_path, kind):
        path = write_columns(
            tmp_path / "train.parquet",
            img=image_structs([png(4), png(5)]),
            fine_label=pa.array([1, 0], kind),
            coarse_label=["x", "y"],
        )
        split = read_split([path], channels=1, num_classes=2)
        assert split.labels.tolist() == [1, 0]
        np.testing.assert_array_equal(split.images[1, 0], random_pixels(5))

    def test_the_class_names_are_those_of_hugging_face(self, tmp_path):
        path = write_parquet(tmp_path / "train.parquet", [0], class_names=["ant", "bee"])
        assert class_names([path]) == ("ant", "bee")

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
        assert class_names([path]) is None

    @pytest.mark.parametrize(
        ("first", "channels"),
        [
            (png(0), 1),
            (encoded(np.zeros((4, 4), np.uint16)), 1),
            (encoded(np.zeros((4, 4), np.bool_)), 1),
            (png(0, channels=3), 3),
        ],
        ids=["8 bits", "16 bits", "black and white", "colour"],
    )
    def test_the_first_image_tells_grey_from_colour(self, tmp_path, first, channels):
        path = write_parquet(tmp_path / "train.parquet", [0, 1], [first, png(0, channels=3)])
        assert image_channels([path]) == channels
