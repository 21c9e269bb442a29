"""Which files of a folder are taken for which split."""

from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.data.layouts import find_layout, parquet_files
from tests.data.files import location


class TestParquetByName:
    @pytest.fixture(autouse=True)
    def empty_files(self, tmp_path):
        def touch(*names):
            for name in names:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

        self.folder, self.touch = tmp_path, touch

    def found(self):
        layout = find_layout(location(self.folder))
        if layout is None:
            return {}
        return {
            split: [str(Path(file.path).relative_to(self.folder)) for file in reader.args[0]]
            for split, reader in layout.readers.items()
        }

    @pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
    def test_the_name_of_a_file_tells_its_split(self, name):
        self.touch("train.parquet", "test.parquet", f"{name}.parquet", "notes.txt", "x.parquet")
        assert self.found() == {
            "train": ["train.parquet"],
            "valid": [f"{name}.parquet"],
            "test": ["test.parquet"],
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
        assert find_layout(location(self.folder / "missing")) is None

    def test_a_missing_shard_is_named(self):
        self.touch("train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
        with pytest.raises(
            UserError,
            match=r"has 2 of the 3 shards of its train split: "
            r"train-00001-of-00003\.parquet is missing; add it",
        ):
            find_layout(location(self.folder))

    def test_the_first_of_many_missing_shards_is_named_and_the_others_counted(self):
        self.touch("test-00000-of-00004.parquet")
        with pytest.raises(
            UserError, match=r"test-00001-of-00004\.parquet is missing, and 2 more"
        ):
            find_layout(location(self.folder))

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
            find_layout(location(self.folder))
        assert f"{self.folder}/train.parquet" in str(caught.value)
        assert f"{self.folder}/{rival}" in str(caught.value)
        assert "keep one of them" in str(caught.value)

    def test_two_shards_of_one_number_are_refused(self):
        self.touch("train-00000-of-00002-aa.parquet", "train-00000-of-00002-bb.parquet")
        with pytest.raises(UserError, match="more than one set of files for the train"):
            find_layout(location(self.folder))

    def test_every_parquet_file_is_listed_whatever_its_name(self):
        self.touch("b.parquet", "data/a.parquet", "c.csv")
        assert [path.name for path in parquet_files(location(self.folder))] == [
            "b.parquet",
            "a.parquet",
        ]
