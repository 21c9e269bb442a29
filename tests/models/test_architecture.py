import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.models.architecture import Architecture, LayerSpec, ModuleSpec
from rayff.models.zoo import architecture


@pytest.fixture
def resnet() -> Architecture:
    return architecture("resnet", num_classes=10, image_channels=3)


def as_json(network: Architecture) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(network.to_dict()))
    return data


class TestSlices:
    @pytest.mark.parametrize(
        ("start", "end", "numbers"),
        [(0, 3, [0, 1, 2]), (6, 9, [6, 7, 8]), (16, 17, [16]), (13, None, [13, 14, 15, 16])],
    )
    def test_a_slice_keeps_the_layers_global_numbers(
        self, resnet: Architecture, start: int, end: int | None, numbers: list[int]
    ):
        part = resnet[start:end]
        assert [layer.index for layer in part.layers] == numbers
        assert len(part) == len(numbers)
        assert part.num_classes == 10
        assert part[0] == resnet[start]

    def test_a_slice_of_a_slice_still_has_the_global_numbers(self, resnet: Architecture):
        assert [layer.index for layer in resnet[5:13][2:4].layers] == [7, 8]

    def test_a_slice_counts_its_own_weights_and_input(self, resnet: Architecture):
        part = resnet[4:6]
        assert part.num_weights == 9 * 100 * 100 + 9 * 200 * 200
        assert part.image_channels == 100

    def test_every_slice_is_valid_but_the_empty_one(self, resnet: Architecture):
        for start in range(17):
            for end in range(start + 1, 18):
                assert len(resnet[start:end]) == end - start
        with pytest.raises(UserError, match="no layers"):
            resnet[5:5]

    @pytest.mark.parametrize(
        ("cuts", "parts"),
        [
            ((), [(0, 16)]),
            ((5, 9, 13), [(0, 4), (5, 8), (9, 12), (13, 16)]),
            ((1, 16), [(0, 0), (1, 15), (16, 16)]),
        ],
    )
    def test_stages_hold_every_layer_once(
        self, resnet: Architecture, cuts: tuple[int, ...], parts: list[tuple[int, int]]
    ):
        stages = resnet.stages(cuts)
        assert [(stage[0].index, stage[len(stage) - 1].index) for stage in stages] == parts
        assert sum(len(stage) for stage in stages) == 17


class TestBoundaryElements:
    @pytest.mark.parametrize(
        ("position", "elements"),
        [
            (0, 3 * 32 * 32),
            (1, 100 * 32 * 32),  # a block begins: its input is its shortcut
            (2, 100 * 32 * 32 + 100 * 32 * 32),  # inside: features and shortcut
            (3, 100 * 32 * 32),
            (4, 100 * 32 * 32 + 100 * 32 * 32),
            (5, 200 * 32 * 32),  # the concatenation is one tensor
            (6, 200 * 16 * 16 + 200 * 32 * 32),  # the shortcut is not pooled yet
            (7, 200 * 16 * 16),
            (8, 200 * 16 * 16 + 200 * 16 * 16),
            (9, 400 * 16 * 16),
            (10, 400 * 8 * 8 + 400 * 16 * 16),
            (13, 800 * 8 * 8),
            (14, 800 * 4 * 4 + 800 * 8 * 8),
            (15, 800 * 4 * 4),
            (16, 800 * 4 * 4),  # the last two layers have no shortcut
        ],
    )
    def test_features_and_an_open_shortcut_are_counted(
        self, resnet: Architecture, position: int, elements: int
    ):
        assert resnet.boundary_elements(position) == elements

    def test_positions_in_a_slice_start_at_zero(self, resnet: Architecture):
        assert resnet[5:9].boundary_elements(1) == 200 * 16 * 16 + 200 * 32 * 32


@pytest.mark.parametrize("name", ["resnet", "vgg", "resnet101"])
def test_an_architecture_survives_json(name: str):
    network = architecture(name, num_classes=10, image_channels=1)
    for each in (network, network[3:7]):
        assert Architecture.from_dict(as_json(each)) == each


@pytest.mark.parametrize(
    ("in_size", "pool", "stride", "out_size"),
    [(32, False, 1, 32), (32, True, 1, 16), (32, False, 2, 16), (8, True, 2, 2), (7, False, 2, 4)],
)
def test_pool_and_stride_each_halve_the_size(in_size: int, pool: bool, stride: int, out_size: int):
    layer = LayerSpec(
        **{"index": 0, "in_channels": 1, "out_channels": 2, "kernel_size": 3},
        **{"in_size": in_size, "pool": pool, "stride": stride},
    )
    assert layer.out_size == out_size


def test_a_layer_is_frozen(resnet: Architecture):
    with pytest.raises(dataclasses.FrozenInstanceError):
        resnet[0].stride = 2  # type: ignore[misc]


class TestMistakes:
    @pytest.mark.parametrize(
        ("second", "sentence"),
        [
            ({"in_channels": 5}, "layer 0 gives 4 channels .* layer 1 expects 5 of"),
            ({"in_size": 32}, "16x16 pixels, but layer 1 .* 32x32"),
        ],
    )
    def test_layers_that_do_not_fit_each_other(self, second: dict[str, int], sentence: str):
        shared = {"out_channels": 4, "kernel_size": 3}
        layers = (
            LayerSpec(index=0, in_channels=3, in_size=32, stride=2, **shared),
            LayerSpec(**{"index": 1, "in_channels": 4, "in_size": 16, **shared, **second}),
        )
        with pytest.raises(UserError, match=sentence):
            Architecture(name="odd", num_classes=2, layers=layers)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data.pop("layers"),
            lambda data: data.pop("name"),
            lambda data: data["layers"][0].pop("in_channels"),
            lambda data: data["layers"][0].update(colour="red"),
            lambda data: data.update(layers=[5]),
            lambda data: data.update(layers=[]),
            lambda data: data["layers"].pop(5),
        ],
    )
    def test_a_damaged_description(
        self, resnet: Architecture, damage: Callable[[dict[str, Any]], object]
    ):
        data = as_json(resnet)
        damage(data)
        with pytest.raises(UserError):
            Architecture.from_dict(data)

    def test_a_list_for_a_description(self):
        with pytest.raises(UserError, match="no description of an architecture"):
            Architecture.from_dict([1, 2])  # type: ignore[arg-type]

    COUNTS = ("out_channels", "kernel_size", "stride", "in_size", "index")

    @pytest.mark.parametrize(
        ("at", "name", "value", "sentence"),
        [
            *(
                (3, name, value, f"{name} must be a whole number of [01] or more")
                for name in COUNTS
                for value in (-1, 3.0, True, "3", None, [3])
            ),
            (3, "kernel_size", 4, "layer 3: kernel_size must be odd, not 4"),
            (3, "stride", 64, "layer 3: stride must be 32 or less, the pixels a side, not 64"),
            (3, "pool", 1, "layer 3: pool must be true or false, not 1"),
            (3, "opens_block", 1, "layer 3: opens_block must be true or false, not 1"),
            (2, "join", "sum", "join must be none or add or concat, not 'sum'"),
            (0, "join", "add", r"the shortcut of layer 0 .*join 'add'.* does not fit"),
            (2, "shortcut_channels", 50, "the shortcut of layer 2 .* does not fit"),
            (3, "index", 7, "layer 2 is followed by layer 7; number"),
        ],
    )
    def test_a_wrong_value_of_a_layer(
        self, resnet: Architecture, at: int, name: str, value: object, sentence: str
    ):
        data = as_json(resnet)
        data["layers"][at][name] = value
        with pytest.raises(UserError, match=sentence):
            Architecture.from_dict(data)

    @pytest.mark.parametrize("value", [10.0, "10", None, True])
    def test_a_number_of_classes_of_another_type(self, resnet: Architecture, value: object):
        with pytest.raises(UserError, match="needs 2 classes or more, not"):
            Architecture.from_dict({**as_json(resnet), "num_classes": value})


RESNET = architecture("resnet", num_classes=4, image_channels=3, width=4)
MODULES = architecture("vgg8b", num_classes=4, image_channels=3, width=4)


class TestModules:
    def test_they_survive_json(self):
        for each in (MODULES, MODULES[2:5]):
            assert Architecture.from_dict(as_json(each)) == each
            assert each.convolutions == ()
            assert each.modules == each.layers

    def test_they_join_no_shortcuts(self):
        for layer in MODULES.layers:
            assert (layer.opens_block, layer.join, layer.shortcut_channels) == (False, "none", 0)

    @pytest.mark.parametrize(
        ("shape", "channels", "size"),
        [((8, 6, 6), 8, 6), ((8, 6, 4), 8, 2), ((8,), 8, 1), ((16, 8), 8, 1), ((3, 1, 5), 3, 1)],
    )
    def test_channels_and_sizes(self, shape: tuple[int, ...], channels: int, size: int):
        layer = ModuleSpec(
            **{"index": 0, "in_shape": shape, "out_shape": shape, "feature_shape": (1,)},
            **{"num_weights": 0, "num_products": 0},
        )
        assert (layer.in_channels, layer.out_channels, layer.out_size) == (
            channels,
            channels,
            size,
        )

    @pytest.mark.parametrize(
        ("at", "name", "value", "sentence"),
        [
            *(
                (3, name, value, f"{name} must be a whole number of 0 or more, not ")
                for name in ("num_weights", "num_products", "index")
                for value in (-1, 1.0, True, None)
            ),
            *(
                (3, name, value, f"{name} must be 1 to 3 whole numbers of 1 or more, not ")
                for name in ("in_shape", "out_shape", "feature_shape")
                for value in ([], [0], [1.0], [1, 2, 3, 4], [True], "abc", 3, None)
            ),
            (3, "in_shape", [8, 16, 15], "layer 2 gives .*, but layer 3 expects 8 of 16x15"),
            (6, "in_shape", [64], "layer 5 gives 16 channels of 2x2 .* expects 64 features"),
            (3, "index", 7, "layer 2 is followed by layer 7; number"),
        ],
    )
    def test_a_wrong_value_of_a_layer(self, at: int, name: str, value: object, sentence: str):
        data = as_json(MODULES)
        data["layers"][at][name] = value
        with pytest.raises(UserError, match=sentence):
            Architecture.from_dict(data)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data.update(source=None),
            lambda data: data.pop("source"),
            lambda data: data.update(source=[1]),
            lambda data: data["source"].pop("function"),
            lambda data: data["source"].update(function=3),
            lambda data: data["source"].update(width=0),
            lambda data: data["source"].update(width=2.5),
            lambda data: data["source"].update(image_channels=None),
            lambda data: data["layers"][0].pop("in_shape"),
            lambda data: data["layers"][0].update(kernel_size=3),
            lambda data: data.update(layers=[5]),
            lambda data: data.update(layers=as_json(RESNET)["layers"]),
        ],
    )
    def test_a_damaged_description(self, damage: Callable[[dict[str, Any]], object]):
        data = as_json(MODULES)
        damage(data)
        with pytest.raises(UserError):
            Architecture.from_dict(data)

    def test_convolutions_are_made_by_no_function(self):
        with pytest.raises(UserError, match="either all modules, .* or all convolutions"):
            dataclasses.replace(RESNET, source=MODULES.source)
        with pytest.raises(UserError, match="either all modules, .* or all convolutions"):
            dataclasses.replace(MODULES, source=None)
