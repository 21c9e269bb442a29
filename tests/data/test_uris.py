"""Data in S3: the same images as in a folder, in memory and streamed, and faults as sentences."""

from pathlib import Path

import numpy as np
import pytest

from rayff.config.errors import UserError
from rayff.engine.evaluation import evaluate
from tests.data.files import load, png
from tests.helpers.runs import layer_files, train_locally
from tests.helpers.s3 import S3
from tests.helpers.tiny_task import tiny_config, write_tiny_task


def upload(folder: Path, server: S3) -> str:
    """Put a folder's files into the bucket; return its URI with the server's address."""
    bucket = server.uri.removeprefix("s3://").partition("/")[0]
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"sets/{folder.name}/{path.relative_to(folder).as_posix()}"
            server.client.put_object(Bucket=bucket, Key=name, Body=path.read_bytes())
    query = server.uri.partition("?")[2]
    return f"s3://{bucket}/sets/{folder.name}?{query}"


@pytest.mark.parametrize("stream", [False, True])
def test_parquet_trains_with_the_bits_of_a_local_copy(
    stream: bool,
    tmp_path: Path,
    s3: S3,
):
    folder = tmp_path / "noise"
    write_tiny_task(folder)
    uri = upload(folder, s3)
    runs = {
        name: train_locally(tiny_config(task, tmp_path / name, stream=stream, epochs=1))
        for name, task in (("local", str(folder)), ("remote", uri))
    }
    assert layer_files(runs["remote"].run_dir) == layer_files(runs["local"].run_dir)
    accuracy = runs["remote"].metrics[-1].test_accuracy
    assert evaluate(runs["remote"].run_dir).accuracy == pytest.approx(accuracy)


def test_image_folders(tmp_path: Path, s3: S3):
    folder = tmp_path / "classes"
    for split in ("train", "test"):
        for row in range(6):
            path = folder / split / ("cat", "dog")[row % 2] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(row, channels=3))
    local, remote = load(folder), load(upload(folder, s3))
    assert (remote.name, remote.class_names) == ("classes", ("cat", "dog"))
    for split, images in local.splits.items():
        np.testing.assert_array_equal(remote.splits[split].images, images.images)


def test_a_server_that_refuses_is_a_sentence(tmp_path: Path, s3: S3):
    folder = tmp_path / "noise"
    write_tiny_task(folder)
    uri = upload(folder, s3)
    s3.fails = lambda method, path: True
    with pytest.raises(UserError, match=r"sets/noise.* cannot be listed \(.*check its name and"):
        load(uri)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://me:secret@bucket/set", "a run directory would keep the key"),
        ("s3:///set", "names no bucket"),
        ("nowhere://bucket/set", "--task nowhere://bucket/set"),
    ],
)
def test_uris_that_lead_nowhere(uri: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        load(uri)
