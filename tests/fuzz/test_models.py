"""A trained network that a stranger made: its description and its weights."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.train_config import TrainConfig
from rayff.learning.chain import ForwardForward
from rayff.models.zoo import architecture
from rayff.runs.run_directory import RunDirectory
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes, broken_json
from tests.fuzz.tensors import broken_tensors, joined, parts
from tests.runs.test_run_directory import CLASSES, export, snapshot

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(TrainConfig(arch="tinycnn", width=4, task="some/task"))
    export(directory)
    return directory


@pytest.fixture
def blocks(tmp_path: Path) -> RunDirectory:
    """A network with shortcuts of both kinds."""
    directory = RunDirectory(tmp_path / "blocks")
    directory.create(TrainConfig(arch="resnet", width=4, task="some/task"))
    network = architecture("resnet", num_classes=4, image_channels=1, width=4)
    layers = [torch.randn(layer.weight_shape) for layer in network.layers]
    directory.export_model(
        network, snapshot(layers), window=(1, 16), class_names=CLASSES, precision="bf16"
    )
    return directory


def load(directory: RunDirectory) -> ForwardForward | None:
    """Load the model and let it do all that a user can ask it for."""
    model = read_or_refused(directory.load_model, directory.path)
    if model is not None:
        channels = model.chain.architecture.image_channels
        images = IMAGES[:, :channels]
        assert model(images).shape == (2, len(model.class_names))
        probabilities, layers_used = model.early_exit(images[0], 0.9)
        assert probabilities.isfinite().all()
        assert 0 < layers_used <= len(model.chain)
        "".join(model.class_names).encode()
    return model


def test_both_networks_are_read(directory: RunDirectory, blocks: RunDirectory) -> None:
    for whole in (directory, blocks):
        assert load(whole) is not None


@cases(300)
@given(data=st.data())
def test_with_values_of_the_description_changed(
    directory: RunDirectory, data: st.DataObject
) -> None:
    path = directory.path / "architecture.json"
    whole = directory.path.parent / "whole.json"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_text(json.dumps(data.draw(broken_json(json.loads(whole.read_text())))))
    load(directory)


@cases(300)
@given(data=st.data())
def test_with_values_of_blocks_changed(blocks: RunDirectory, data: st.DataObject) -> None:
    path = blocks.path / "architecture.json"
    whole = blocks.path.parent / "whole.json"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    description = json.loads(whole.read_text())
    layers = description["architecture"]["layers"]
    description["architecture"]["layers"] = data.draw(broken_json(layers))
    path.write_text(json.dumps(description))
    load(blocks)


@cases(200)
@given(data=st.data())
def test_with_bytes_of_the_description_changed(
    directory: RunDirectory, data: st.DataObject
) -> None:
    path = directory.path / "architecture.json"
    whole = directory.path.parent / "whole.json"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_bytes(data.draw(broken_bytes(whole.read_bytes())))
    load(directory)


@cases(300)
@given(data=st.data())
def test_with_weights_that_are_none(directory: RunDirectory, data: st.DataObject) -> None:
    path = directory.path / "model.safetensors"
    whole = directory.path.parent / "whole.safetensors"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    path.write_bytes(data.draw(broken_tensors(whole.read_bytes())))
    load(directory)


@cases(200)
@given(data=st.data())
def test_with_bytes_of_the_weights_changed(directory: RunDirectory, data: st.DataObject) -> None:
    path = directory.path / "model.safetensors"
    whole = directory.path.parent / "whole.safetensors"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    head = data.draw(broken_bytes(whole.read_bytes()[:400]))
    path.write_bytes(head + whole.read_bytes()[400:])
    load(directory)


@pytest.mark.parametrize("claim", [2**20, 2**40, 2**60])
def test_a_network_that_claims_to_be_huge_takes_no_memory(
    directory: RunDirectory, claim: int
) -> None:
    """In the description, in the header of the weights, or in both of them."""
    path = directory.path / "architecture.json"
    description = json.loads(path.read_text())
    layers = description["architecture"]["layers"]
    layers[0]["out_channels"] = layers[1]["in_channels"] = 4 * claim
    path.write_text(json.dumps(description))
    assert load(directory) is None
    weights = directory.path / "model.safetensors"
    header, data = parts(weights.read_bytes())
    header["layers.0.weight"]["shape"][0] = 4 * claim
    weights.write_bytes(joined(header, data))
    assert load(directory) is None
    path.write_bytes(json.dumps(description).encode())
    assert load(directory) is None
