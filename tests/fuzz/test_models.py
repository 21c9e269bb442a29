"""Trained networks of an attacker's: the description and the weights."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff import load_model
from rayff.learning.classifier import Classifier
from rayff.models.zoo import architecture
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes, broken_json, replaced
from tests.fuzz.tensors import broken_tensors, joined, parts
from tests.helpers.modules import HERE
from tests.runs.models import weights, write_modules, write_run
from tests.runs.readouts import FUSION, READOUTS

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
BLOCKS = architecture("resnet", num_classes=4, image_channels=1, width=4)
MODULES = architecture(f"{HERE}:every_kind", num_classes=4, image_channels=3)
DESCRIPTION, WEIGHTS = "architecture.json", "model.safetensors"


def without_digest(run_dir: Path) -> Path:
    """Make the model one of an older version, so that other weights are looked at."""
    path = run_dir / DESCRIPTION
    description = json.loads(path.read_text())
    del description["weights_sha256"]
    path.write_text(json.dumps(description))
    return run_dir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    written = write_run(tmp_path / "run", fusion=FUSION, temperatures=READOUTS.temperatures)
    return without_digest(written)


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """A network with shortcuts of both kinds."""
    written = write_run(
        tmp_path / "blocks",
        layers=weights(network=BLOCKS),
        architecture=BLOCKS,
        sip_window=(1, 16),
        precision="bf16",
    )
    return without_digest(written)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A network of modules, with buffers."""
    return without_digest(write_modules(tmp_path / "modules", MODULES))


def load(run_dir: Path) -> Classifier | None:
    """Load the model, and use it in every way."""
    model = read_or_refused(lambda: load_model(run_dir), run_dir)
    if model is not None:
        images = IMAGES[:, : model.architecture.image_channels]
        assert model(images).shape == (2, len(model.class_names))
        probabilities, layers_used = model.early_exit(images, 0.9)
        small = all(weight.abs().max() < 1e3 for weight in model.parameters())
        if small and not list(model.buffers()):  # others may overflow, or be negative variances
            assert probabilities.isfinite().all()
        assert 0 < layers_used.min() <= layers_used.max() <= len(model.architecture)
        for name in model.readouts:
            model.readout = name
            assert model.probabilities(images).shape == (2, len(model.class_names))
            assert 0 < model.temperature < math.inf
        "".join(model.class_names).encode()
    return model


def whole(path: Path) -> bytes:
    """Return the content of a file before the first case changed it."""
    kept = path.parent.parent / f"whole-{path.name}"
    if not kept.exists():
        kept.write_bytes(path.read_bytes())
    return kept.read_bytes()


def test_the_cases_begin_with_networks_that_are_read(
    run_dir: Path, blocks: Path, modules: Path
) -> None:
    for each in (run_dir, blocks, modules):
        assert load(each) is not None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_with_each_value_of_the_description_of_another_kind(run_dir: Path) -> None:
    path = run_dir / DESCRIPTION
    for description in replaced(json.loads(whole(path))):
        path.write_text(json.dumps(description))
        model = load(run_dir)
        for index, weight in enumerate(
            weights() if model else []
        ):  # what is left out has a default
            assert torch.equal(model.state_dict()[f"chain.layers.{index}.weight"], weight)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_with_each_value_of_a_description_of_modules_of_another_kind(modules: Path) -> None:
    path = modules / DESCRIPTION
    for description in replaced(json.loads(whole(path))):
        path.write_text(json.dumps(description))
        load(modules)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@cases(100)
@given(data=st.data())
def test_with_values_of_a_description_of_modules_changed(
    modules: Path, data: st.DataObject
) -> None:
    path = modules / DESCRIPTION
    path.write_text(json.dumps(data.draw(broken_json(json.loads(whole(path))))))
    load(modules)


@cases(100)
@given(data=st.data())
def test_with_tensors_of_modules_that_no_run_writes(modules: Path, data: st.DataObject) -> None:
    path = modules / WEIGHTS
    path.write_bytes(data.draw(broken_tensors(whole(path))))
    load(modules)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@cases(200)
@given(data=st.data())
def test_with_values_of_the_description_changed(run_dir: Path, data: st.DataObject) -> None:
    path = run_dir / DESCRIPTION
    path.write_text(json.dumps(data.draw(broken_json(json.loads(whole(path))))))
    load(run_dir)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@cases(200)
@given(data=st.data())
def test_with_values_of_blocks_changed(blocks: Path, data: st.DataObject) -> None:
    path = blocks / DESCRIPTION
    description = json.loads(whole(path))
    layers = description["architecture"]["layers"]
    description["architecture"]["layers"] = data.draw(broken_json(layers))
    path.write_text(json.dumps(description))
    load(blocks)


@cases(300)
@given(data=st.data())
def test_with_tensors_that_no_run_writes(run_dir: Path, data: st.DataObject) -> None:
    path = run_dir / WEIGHTS
    path.write_bytes(data.draw(broken_tensors(whole(path))))
    load(run_dir)


@cases(200)
@given(data=st.data())
def test_with_bytes_of_the_weights_changed(run_dir: Path, data: st.DataObject) -> None:
    path = run_dir / WEIGHTS
    content = whole(path)
    path.write_bytes(data.draw(broken_bytes(content[:400])) + content[400:])
    load(run_dir)


@pytest.mark.parametrize("claim", [2**20, 2**40, 2**60])
def test_a_network_that_claims_to_be_huge_takes_no_memory(run_dir: Path, claim: int) -> None:
    """In the description, in the header of the weights, or in both of them."""
    path = run_dir / DESCRIPTION
    description = json.loads(path.read_text())
    layers = description["architecture"]["layers"]
    layers[0]["out_channels"] = layers[1]["in_channels"] = 4 * claim
    path.write_text(json.dumps(description))
    assert load(run_dir) is None
    file = run_dir / WEIGHTS
    header, data = parts(file.read_bytes())
    header["layers.0.weight"]["shape"][0] = 4 * claim
    file.write_bytes(joined(header, data))
    assert load(run_dir) is None
    path.write_bytes(whole(path))
    assert load(run_dir) is None
