"""Profile files: what is read, what is refused, and the layer times that follow."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.models.zoo import architecture
from rayff.partition.device_profile import (
    DeviceProfile,
    feature_bytes,
    merged,
    profile_json,
    profile_names,
    read_profile,
)
from rayff.partition.layer_model import network_model
from tests.helpers.profiles import TINYCNN, device_profile, timing

RESNET = architecture("resnet", num_classes=10, image_channels=3)

RATES = {"operations_per_s": 1e12, "bytes_per_s": 1e9}
STEP = {"network": "resnet", "batch_size": 8, "step_s": 0.1, "source": "measured"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device.json"
    path.write_text(profile_json(device_profile()))
    return path


def test_a_profile_is_read_as_it_was_written(file: Path):
    assert read_profile(str(file)) == device_profile()


def _set(*keys: Any, to: Any) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        inside = data
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = to
        return data

    return change


def _without(*keys: Any) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        inside = data
        for key in keys[:-1]:
            inside = inside[key]
        del inside[keys[-1]]
        return data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [data], "Input should be an object, not .*; write it with"),
        (_set("format", to=2), "format: Input should be 1, not 2"),
        (_without("timings"), "timings: Field required"),
        (_set("timings", to=[]), "neither timings nor a roofline"),
        (_set("timings", 0, "layers", to=[]), r"timings\[0\].layers: they take no time at all"),
        (
            _without("timings", 0, "layers", 2, "gradient_s"),
            r"layers\[2\].gradient_s: Field required",
        ),
        (
            _set("timings", 0, "layers", 1, "forward_s", to=-1.0),
            r"timings\[0\].layers\[1\].forward_s: .* greater than or equal to 0, not -1.0",
        ),
        (_set("timings", 0, "layers", 1, "forward_s", to=float("nan")), "forward_s: .* finite"),
        (_set("timings", 0, "layers", 1, "forward_s", to="fast"), "not 'fast'"),
        (_set("timings", 0, "batch_size", to=1.5), "batch_size: .* valid integer, not 1.5"),
        (_set("node", "bytes_per_s", to=0), "node.bytes_per_s: .* greater .*, not 0"),
        (_set("network", to=3), "network: .* an object, not 3"),
        (_set("precision", to="fp8"), "precision: .* 'fp32' or 'bf16', not 'fp8'"),
        (_set("hardware", to="\x1b[2J"), "hardware: it has characters that cannot be printed"),
        (_set("colour", to="red"), "colour: Unexpected .*, not 'red'"),
        (
            _set("roofline", to={**RATES, "steps": []}),
            "roofline.steps: .* at least 1 item",
        ),
        (
            _set("roofline", to={**RATES, "steps": [{**STEP, "network": "os:getcwd"}]}),
            r"roofline.steps\[0\].network: .* networks of rayff alone, not 'os:getcwd'",
        ),
        (
            _set("roofline", to={**RATES, "steps": [{**STEP, "network": "resnat"}]}),
            r"roofline.steps\[0\].network: .*resnat",
        ),
    ],
)
def test_a_broken_profile_is_refused_in_a_sentence(
    file: Path, change: Callable[[Any], Any], message: str
):
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=message):
        read_profile(str(file))


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(file: Path, content: bytes):
    file.write_bytes(content)
    with pytest.raises(UserError, match="Invalid JSON: .*; write it with"):
        read_profile(str(file))


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path):
    for name in ("h300", str(tmp_path / "none.json"), "a\0b"):
        with pytest.raises(UserError, match="there is no profile .*name one of .*h200"):
            read_profile(name)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_profile(str(tmp_path))


@pytest.mark.parametrize("name", profile_names())
def test_the_profiles_that_come_along_fit_their_networks(name: str):
    profile = read_profile(name)
    steps = profile.roofline.steps if profile.roofline else ()
    for network in {*profile.networks(), *(step.network for step in steps)}:
        made = architecture(network, num_classes=10, image_channels=3)
        model = network_model(profile, made, "goodness", 7)
        assert all(layer.image_s + layer.fixed_s > 0 for layer in model.layers)


class TestModel:
    """Each layer takes 1, 2, 3 and 4 ms for a batch of 8, of which the optimizer takes none."""

    def test_one_batch_size_is_in_proportion_to_the_images(self):
        layers = network_model(device_profile(), TINYCNN, "goodness", 0).layers
        assert [8 * layer.image_s for layer in layers] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])
        assert {layer.fixed_s for layer in layers} == {0.0}

    def test_two_batch_sizes_make_a_line(self):
        profile = device_profile(timing(8, [1e-3] * 4), timing(4, [0.75e-3] * 4))
        layer = network_model(profile, TINYCNN, "goodness", 0).layers[0]
        assert (8 * layer.image_s, layer.fixed_s) == pytest.approx((0.5e-3, 0.5e-3))

    @pytest.mark.parametrize(
        ("half_s", "image_s", "fixed_s"), [(2e-3, 0.0, 1e-3), (0.1e-3, 1e-3, 0.0)]
    )
    def test_noise_makes_no_line_fall_or_begin_below_nothing(
        self, half_s: float, image_s: float, fixed_s: float
    ):
        profile = device_profile(timing(8, [1e-3] * 4), timing(4, [half_s] * 4))
        layer = network_model(profile, TINYCNN, "goodness", 0).layers[0]
        assert (8 * layer.image_s, layer.fixed_s) == pytest.approx((image_s, fixed_s))

    @pytest.mark.parametrize(("neighbours", "first_s"), [(0, 1e-3), (1, 2e-3), (9, 2e-3)])
    def test_neighbours_make_no_layer_faster(self, neighbours: int, first_s: float):
        beside = timing(8, [2e-3, 1e-3, 6e-3, 8e-3], neighbours=1)
        profile = device_profile(timing(8, [1e-3, 2e-3, 3e-3, 4e-3]), beside)
        layers = network_model(profile, TINYCNN, "goodness", neighbours).layers
        assert 8 * layers[0].image_s == pytest.approx(first_s)
        assert 8 * layers[1].image_s == pytest.approx(2e-3)

    def test_the_optimizer_does_not_depend_on_the_images(self):
        profile = device_profile(timing(8, [1e-3] * 4, optimizer_s=5e-3))
        assert network_model(profile, TINYCNN, "goodness", 0).layers[2].fixed_s == 5e-3

    def test_layers_that_were_not_timed_are_modelled_and_say_so(self):
        model = network_model(read_profile("h200"), RESNET, "goodness", 0)
        assert "MODELLED from a total" in model.source
        assert "2026-11-26" in model.source
        step_s = sum(128 * layer.image_s + layer.fixed_s for layer in model.layers)
        assert step_s == pytest.approx(3.02e-3)  # as measured

    def test_a_larger_network_takes_the_ratio_of_the_nearest_that_was_measured(self):
        large = architecture("resnet_large", num_classes=10, image_channels=3)
        found = network_model(read_profile("h200"), large, "goodness", 0)
        assert "the measured step of resnet over" in found.source

    def test_another_network_loss_or_width_is_refused(self):
        with pytest.raises(UserError, match="has no times of resnet with --loss goodness, but of"):
            network_model(device_profile(), RESNET, "goodness", 0)
        with pytest.raises(UserError, match="--arch tinycnn --loss linear --save-profile"):
            network_model(device_profile(), TINYCNN, "linear", 0)
        wide = architecture("tinycnn", num_classes=10, image_channels=3, width=40)
        with pytest.raises(UserError, match="layer 0 of the profile's tinycnn has .* weights"):
            network_model(device_profile(), wide, "goodness", 0)
        short = replace(TINYCNN, layers=TINYCNN.layers[:3])
        with pytest.raises(UserError, match="tinycnn has 4 layers, and this one 3"):
            network_model(device_profile(), short, "goodness", 0)


def test_a_boundary_behind_a_layer_has_the_bytes_of_its_cut():
    assert feature_bytes(TINYCNN, "fp32")[:2] == [4 * 100 * 32 * 32, 4 * 200 * 16 * 16]
    assert feature_bytes(RESNET, "bf16")[5] == 2 * (200 * 16 * 16 + 200 * 32 * 32)


def test_a_new_measurement_replaces_that_of_the_same_network_alone():
    old = device_profile(timing(8, [1e-3] * 4), replace(timing(8, [1e-3] * 4), network="vgg"))
    new = device_profile(timing(16, [2e-3] * 4))
    assert [(t.network, t.batch_size) for t in merged(old, new).timings] == [
        ("vgg", 8),
        ("tinycnn", 16),
    ]
    other: DeviceProfile = replace(new, hardware="another")
    with pytest.raises(UserError, match="a profile with hardware some CPU, and here it is anoth"):
        merged(old, other)
