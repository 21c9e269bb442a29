import dataclasses
import json

import pytest

from rayff.config.errors import UserError
from rayff.models.architecture import Architecture, LayerSpec
from rayff.models.zoo import architecture


@pytest.fixture
def resnet() -> Architecture:
    return architecture("resnet", num_classes=10, image_channels=3)


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

    def test_an_empty_slice_is_no_architecture(self, resnet: Architecture):
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
    def test_cuts_make_stages_that_hold_every_layer_once(
        self, resnet: Architecture, cuts: tuple[int, ...], parts: list[tuple[int, int]]
    ):
        stages = resnet.stages(cuts)
        assert [(stage[0].index, stage[len(stage) - 1].index) for stage in stages] == parts
        assert sum(len(stage) for stage in stages) == 17


class TestCrossing:
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
    def test_an_image_sends_what_both_sides_share(
        self, resnet: Architecture, position: int, elements: int
    ):
        assert resnet.boundary_elements(position) == elements

    def test_a_slice_counts_its_positions_from_its_own_start(self, resnet: Architecture):
        assert resnet[5:9].boundary_elements(1) == 200 * 16 * 16 + 200 * 32 * 32

    def test_a_pool_comes_behind_the_cut(self):
        vgg = architecture("vgg", num_classes=10, image_channels=1)
        assert vgg.boundary_elements(2) == 70 * 32 * 32
        assert vgg.boundary_elements(3) == 140 * 16 * 16

    def test_a_bottleneck_carries_its_shortcut_over_both_inner_cuts(self):
        network = architecture("resnet101", num_classes=10, image_channels=3)
        assert network.boundary_elements(10) == 280 * 32 * 32
        assert network.boundary_elements(11) == 140 * 32 * 32 + 280 * 32 * 32
        assert network.boundary_elements(12) == 140 * 16 * 16 + 280 * 32 * 32
        assert network.boundary_elements(13) == 560 * 16 * 16


class TestMistakes:
    def test_layers_that_do_not_fit_each_other_are_named(self):
        first = LayerSpec(index=0, in_channels=3, out_channels=4, kernel_size=3, in_size=32)
        second = LayerSpec(index=1, in_channels=5, out_channels=4, kernel_size=3, in_size=32)
        with pytest.raises(UserError, match="layer 0 gives 4 channels .* layer 1 expects 5 of"):
            Architecture(name="odd", num_classes=2, layers=(first, second))

    def test_layers_whose_sizes_do_not_fit_are_named(self):
        first = LayerSpec(
            index=0, in_channels=3, out_channels=4, kernel_size=3, in_size=32, stride=2
        )
        second = LayerSpec(index=1, in_channels=4, out_channels=4, kernel_size=3, in_size=32)
        with pytest.raises(UserError, match="16x16 pixels, but layer 1 .* 32x32"):
            Architecture(name="odd", num_classes=2, layers=(first, second))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data.pop("layers"),
            lambda data: data.pop("name"),
            lambda data: data.update(num_classes="ten"),
            lambda data: data["layers"][0].pop("in_channels"),
            lambda data: data["layers"][0].update(colour="red"),
            lambda data: data.update(layers=[5]),
            lambda data: data.update(layers=[]),
            lambda data: data["layers"].pop(5),
        ],
    )
    def test_a_damaged_description_is_a_mistake_and_no_crash(self, resnet: Architecture, damage):
        data = json.loads(json.dumps(resnet.to_dict()))
        damage(data)
        with pytest.raises(UserError):
            Architecture.from_dict(data)

    def test_what_is_no_description_at_all_is_a_mistake(self):
        with pytest.raises(UserError, match="no description of an architecture"):
            Architecture.from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["resnet", "vgg", "resnet101"])
def test_an_architecture_comes_back_from_json_as_it_was(name: str):
    network = architecture(name, num_classes=10, image_channels=1)
    assert Architecture.from_dict(json.loads(json.dumps(network.to_dict()))) == network
    part = network[3:7]
    assert Architecture.from_dict(json.loads(json.dumps(part.to_dict()))) == part


@pytest.mark.parametrize(
    ("in_size", "pool", "stride", "out_size"),
    [(32, False, 1, 32), (32, True, 1, 16), (32, False, 2, 16), (8, True, 2, 2), (7, False, 2, 4)],
)
def test_pool_and_stride_each_halve_the_size(in_size: int, pool: bool, stride: int, out_size: int):
    layer = LayerSpec(
        index=0,
        in_channels=1,
        out_channels=2,
        kernel_size=3,
        in_size=in_size,
        pool=pool,
        stride=stride,
    )
    assert layer.out_size == out_size


def test_a_layer_cannot_be_changed_in_place(resnet: Architecture):
    with pytest.raises(dataclasses.FrozenInstanceError):
        resnet[0].stride = 2  # type: ignore[misc]


class TestADescriptionThatCannotBe:
    """What JSON can hold and no network is."""

    def refused(self, network: Architecture, at: int, match: str, **values: object):
        data = json.loads(json.dumps(network.to_dict()))
        data["layers"][at].update(values)
        with pytest.raises(UserError, match=match):
            Architecture.from_dict(data)

    @pytest.mark.parametrize("name", ["out_channels", "kernel_size", "stride", "in_size", "index"])
    @pytest.mark.parametrize("value", [-1, 3.0, True, "3", None, [3]])
    def test_a_count_of_another_kind(self, resnet: Architecture, name: str, value: object):
        self.refused(resnet, 3, f"{name} must be a whole number of [01] or more", **{name: value})

    def test_a_kernel_that_changes_the_size(self, resnet: Architecture):
        self.refused(resnet, 3, "layer 3: kernel_size must be odd, not 4", kernel_size=4)

    @pytest.mark.parametrize("name", ["pool", "opens_block"])
    def test_a_switch_that_is_a_number(self, resnet: Architecture, name: str):
        self.refused(resnet, 3, f"layer 3: {name} must be true or false, not 1", **{name: 1})

    def test_a_join_that_is_none(self, resnet: Architecture):
        self.refused(resnet, 2, "join must be none or add or concat, not 'sum'", join="sum")

    def test_a_join_without_a_shortcut(self, resnet: Architecture):
        self.refused(resnet, 0, r"the shortcut of layer 0 .*join 'add'.* does not fit", join="add")

    def test_a_shortcut_of_other_channels(self, resnet: Architecture):
        self.refused(resnet, 2, "the shortcut of layer 2 .* does not fit", shortcut_channels=50)

    def test_a_sum_of_other_channels(self, resnet: Architecture):
        self.refused(resnet, 6, "the shortcut of layer|layer 6 gives", join="add", out_channels=10)

    def test_layers_that_are_not_numbered_one_by_one(self, resnet: Architecture):
        self.refused(resnet, 3, "layer 2 is followed by layer 7; number", index=7)

    @pytest.mark.parametrize("value", [10.0, "10", None, True])
    def test_a_number_of_classes_of_another_kind(self, resnet: Architecture, value: object):
        data = {**resnet.to_dict(), "num_classes": value}
        with pytest.raises(UserError, match="needs 2 classes or more, not"):
            Architecture.from_dict(data)

    def test_a_slice_that_begins_inside_a_block_is_none_of_it(self, resnet: Architecture):
        for start in range(17):
            for end in range(start + 1, 18):
                assert len(resnet[start:end]) == end - start
