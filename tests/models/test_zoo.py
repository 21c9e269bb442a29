"""The architectures against the tables of the paper, written out by hand."""

import re
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.models.architecture import Architecture
from rayff.models.zoo import ARCHITECTURES, Row, architecture, chain, default_image_size

# in, out, kernel, stride, pool before it, pixels a side of the output, join
RESNET = [
    (3, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "add"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "concat"),
    (200, 200, 3, 2, False, 16, "none"),
    (200, 200, 3, 1, False, 16, "add"),
    (200, 200, 3, 1, False, 16, "none"),
    (200, 200, 3, 1, False, 16, "concat"),
    (400, 400, 3, 2, False, 8, "none"),
    (400, 400, 3, 1, False, 8, "add"),
    (400, 400, 3, 1, False, 8, "none"),
    (400, 400, 3, 1, False, 8, "concat"),
    (800, 800, 3, 2, False, 4, "none"),
    (800, 800, 3, 1, False, 4, "add"),
    (800, 800, 3, 1, False, 4, "none"),
    (800, 800, 3, 1, False, 4, "none"),  # the last group
]
VGG = [
    (3, 70, 3, 1, False, 32, "none"),
    (70, 70, 3, 1, False, 32, "none"),
    (70, 140, 3, 1, True, 16, "none"),
    (140, 140, 3, 1, False, 16, "none"),
    (140, 140, 3, 1, False, 16, "none"),
    (140, 280, 3, 1, True, 8, "none"),
    (280, 280, 3, 1, False, 8, "none"),
    (280, 280, 3, 1, False, 8, "none"),
    (280, 560, 3, 1, True, 4, "none"),
    (560, 560, 3, 1, False, 4, "none"),
    (560, 560, 3, 1, False, 4, "none"),
    (560, 560, 3, 1, True, 2, "none"),
    (560, 560, 3, 1, False, 2, "none"),
    (560, 560, 3, 1, False, 2, "none"),
]
TINYCNN = [
    (3, 100, 5, 1, False, 32, "none"),
    (100, 200, 5, 1, True, 16, "none"),
    (200, 400, 3, 1, True, 8, "none"),
    (400, 400, 3, 1, False, 8, "none"),
]
PLAIN17 = [  # without a concatenation the first layer of groups 2 to 4 doubles the channels
    (3, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 100, 3, 1, False, 32, "none"),
    (100, 200, 3, 2, False, 16, "none"),
    (200, 200, 3, 1, False, 16, "none"),
    (200, 200, 3, 1, False, 16, "none"),
    (200, 200, 3, 1, False, 16, "none"),
    (200, 400, 3, 2, False, 8, "none"),
    (400, 400, 3, 1, False, 8, "none"),
    (400, 400, 3, 1, False, 8, "none"),
    (400, 400, 3, 1, False, 8, "none"),
    (400, 800, 3, 2, False, 4, "none"),
    (800, 800, 3, 1, False, 4, "none"),
    (800, 800, 3, 1, False, 4, "none"),
    (800, 800, 3, 1, False, 4, "none"),
]
TABLES = {"resnet": RESNET, "vgg": VGG, "tinycnn": TINYCNN, "plain17": PLAIN17}


def table(network: Architecture) -> list[tuple[int, int, int, int, bool, int, str]]:
    return [
        (
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.pool,
            layer.out_size,
            layer.join,
        )
        for layer in network.layers
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_network_has_the_papers_layers(name: str):
    network = architecture(name, num_classes=10, image_channels=3)
    assert table(network) == TABLES[name]
    assert [layer.index for layer in network.layers] == list(range(len(TABLES[name])))


@pytest.mark.parametrize("name", TABLES)
def test_a_grey_image_changes_the_first_layers_input_alone(name: str):
    (first, *rest) = TABLES[name]
    network = architecture(name, num_classes=10, image_channels=1)
    assert table(network) == [(1, *first[1:]), *rest]
    assert network.image_channels == 1


@pytest.mark.parametrize("name", TABLES)
def test_the_width_scales_every_layer(name: str):
    unit, width = TABLES[name][0][1], 20
    scaled = [
        (i if index == 0 else i * width // unit, o * width // unit, *rest)
        for index, (i, o, *rest) in enumerate(TABLES[name])
    ]
    assert table(architecture(name, num_classes=10, image_channels=3, width=width)) == scaled


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("resnet", [1, 3, 5, 7, 9, 11, 13]),
        ("vgg", []),
        ("tinycnn", []),
        ("plain17", []),
        ("resnet20", list(range(1, 19, 2))),
        ("resnet34", list(range(1, 33, 2))),
        ("resnet101", list(range(1, 100, 3))),
    ],
)
def test_blocks_open_where_the_paper_draws_a_shortcut(name: str, opening: list[int]):
    network = architecture(name, num_classes=10, image_channels=3)
    assert [layer.index for layer in network.layers if layer.opens_block] == opening


@pytest.mark.parametrize(
    ("name", "image_channels", "weights"),
    [
        ("resnet", 1, 30_600_900),
        ("resnet", 3, 9 * (3 * 100 + 4 * (100**2 + 200**2 + 400**2 + 800**2))),
        ("tinycnn", 1, 25 * 100 + 25 * 100 * 200 + 9 * 200 * 400 + 9 * 400 * 400),
        (
            *("vgg", 3),
            9 * 70 * (3 + 70 + (140 + 140 * 2 * 2) + (280 * 2 + 280 * 4 * 2))
            + 9 * (280 * 560 + 560 * 560 * 5),
        ),
    ],
)
def test_weights_are_those_of_the_convolutions(name: str, image_channels: int, weights: int):
    network = architecture(name, num_classes=10, image_channels=image_channels)
    assert network.num_weights == weights


@pytest.mark.parametrize(
    ("name", "num_layers", "ends"),
    [
        ("resnet", 17, {0: (100, 32), 4: (200, 32), 8: (400, 16), 12: (800, 8), 16: (800, 4)}),
        ("plain17", 17, {0: (100, 32), 4: (100, 32), 8: (200, 16), 12: (400, 8), 16: (800, 4)}),
        (
            "resnet_large",
            17,
            {0: (300, 32), 4: (600, 32), 8: (1200, 16), 12: (2400, 8), 16: (2400, 4)},
        ),
        ("resnet20", 19, {0: (100, 32), 6: (100, 32), 12: (200, 16), 18: (400, 8)}),
        (
            "resnet34",
            33,
            {0: (100, 32), 6: (100, 32), 14: (200, 16), 26: (400, 8), 32: (800, 4)},
        ),
        (
            "resnet101",
            100,
            {0: (70, 32), 9: (280, 32), 21: (560, 16), 90: (1120, 8), 99: (2240, 4)},
        ),
    ],
)
def test_groups_of_deeper_and_wider_networks_end_with_their_channels_and_sizes(
    name: str, num_layers: int, ends: dict[int, tuple[int, int]]
):
    network = architecture(name, num_classes=10, image_channels=3)
    assert len(network) == num_layers
    assert {
        index: (network[index].feature_channels, network[index].out_size) for index in ends
    } == ends


def test_the_first_blocks_of_resnet101_are_bottlenecks_that_widen_by_concatenation():
    network = architecture("resnet101", num_classes=10, image_channels=3)
    assert table(network)[:7] == [
        (3, 70, 3, 1, False, 32, "none"),
        (70, 70, 1, 1, False, 32, "none"),
        (70, 70, 3, 1, False, 32, "none"),
        (70, 210, 1, 1, False, 32, "concat"),  # 210 new ones and the 70 of the shortcut
        (280, 70, 1, 1, False, 32, "none"),
        (70, 70, 3, 1, False, 32, "none"),
        (70, 280, 1, 1, False, 32, "add"),
    ]
    assert table(network)[10:13] == [
        (280, 140, 1, 1, False, 32, "none"),
        (140, 140, 3, 2, False, 16, "none"),
        (140, 280, 1, 1, False, 16, "concat"),
    ]


def test_the_groups_of_resnet20_widen_by_concatenation_in_their_first_block():
    network = architecture("resnet20", num_classes=10, image_channels=3)
    assert table(network)[5:11] == [
        (100, 100, 3, 1, False, 32, "none"),
        (100, 100, 3, 1, False, 32, "add"),
        (100, 200, 3, 2, False, 16, "none"),
        (200, 100, 3, 1, False, 16, "concat"),
        (200, 200, 3, 1, False, 16, "none"),
        (200, 200, 3, 1, False, 16, "add"),
    ]


def returns_rows(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Row]:
    return [Row(channels=(width or 4) * num_classes), Row(channels=2 * num_classes, pool=True)]


def returns_an_architecture(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> Architecture:
    rows = returns_rows(num_classes, image_channels, image_size, width)
    return chain("mine", rows, num_classes, image_channels, image_size)


def returns_something_else(**options: object) -> dict[str, object]:
    return options


def fails(num_classes: int, image_channels: int, image_size: int, width: int | None) -> None:
    raise KeyError("depth")


class TestImportPaths:
    @pytest.mark.parametrize("name", ["returns_rows", "returns_an_architecture"])
    @pytest.mark.parametrize(("width", "channels"), [(None, 12), (5, 15)])
    def test_a_function_makes_the_network(self, name: str, width: int | None, channels: int):
        path = f"{__name__}:{name}"
        network = architecture(path, num_classes=3, image_channels=1, width=width)
        assert table(network) == [
            (1, channels, 3, 1, False, 32, "none"),
            (channels, 6, 3, 1, True, 16, "none"),
        ]
        assert network.name == (path if name == "returns_rows" else "mine")

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "returns_something_else",
                "returned dict: return an Architecture, a list of Row, or a list of ModuleRow or "
                "callables that each make a module",
            ),
            (
                "fails",
                ": calling it with num_classes=3, image_channels=1, image_size=32, width=None "
                r"failed \(KeyError: 'depth'\)",
            ),
        ],
    )
    def test_a_function_that_does_not_make_one_is_refused(self, name: str, sentence: str):
        path = f"{__name__}:{name}"
        with pytest.raises(UserError, match=f"^--arch {path} ?{sentence}$"):
            architecture(path, num_classes=3, image_channels=1)


class TestMistakes:
    @pytest.mark.parametrize("name", ARCHITECTURES.names)
    @pytest.mark.parametrize("num_classes", [3, 11, 26, 47, 1000])
    def test_the_width_that_the_error_proposes_works(self, name: str, num_classes: int):
        with pytest.raises(UserError, match=r"do not split into \d+ equal groups") as caught:
            architecture(name, num_classes=num_classes, image_channels=3, width=10).check_groups()
        message = str(caught.value)
        assert f"{name!r}: the 10 channels of layer 0" in message
        proposed = re.search(r"--width (\d+)", message)
        assert proposed is not None
        network = architecture(
            name, num_classes=num_classes, image_channels=3, width=int(proposed[1])
        )
        network.check_groups()
        assert all(layer.out_channels % num_classes == 0 for layer in network.layers)

    def test_the_proposed_width_is_the_next_multiple(self):
        with pytest.raises(UserError, match="--width 104 "):
            architecture("resnet", num_classes=26, image_channels=1).check_groups()

    def test_the_error_names_the_first_layer_whose_channels_do_not_split(self):
        rows = [Row(channels=10), Row(channels=20), Row(channels=41)]
        with pytest.raises(UserError, match="the 41 channels of layer 2 do not split into 5"):
            chain("odd", rows, num_classes=5, image_channels=1).check_groups()

    def test_a_hundred_classes_fit_the_resnet_and_not_the_vgg(self):
        architecture("resnet", num_classes=100, image_channels=3).check_groups()
        with pytest.raises(UserError, match="the 70 channels of layer 0 .* --width 100 "):
            architecture("vgg", num_classes=100, image_channels=3).check_groups()
        architecture("vgg", num_classes=100, image_channels=3, width=100).check_groups()

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"image_channels": 0}, "images of 1 or 3 channels, not 0"),
            ({"image_channels": 2}, "images of 1 or 3 channels, not 2"),
            ({"width": 0}, "--width must be 1 or more, not 0"),
            ({"width": -10}, "--width must be 1 or more, not -10"),
            ({"num_classes": 0}, "2 classes or more, not 0"),
            ({"num_classes": 1}, "2 classes or more, not 1"),
            ({"name": "vgg16"}, r"--arch: unknown architecture 'vgg16' \(did you mean 'vgg'\?\)"),
        ],
        ids=str,
    )
    def test_a_value_out_of_range_is_refused(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError, match=sentence):
            architecture(**{"name": "resnet", "num_classes": 10, "image_channels": 3, **options})


class TestImageSizes:
    @pytest.mark.parametrize(
        ("name", "size", "sizes"),
        [
            ("resnet", 64, {0: 64, 4: 64, 8: 32, 12: 16, 16: 8}),
            ("vgg", 64, {0: 64, 4: 32, 7: 16, 10: 8, 13: 4}),
            ("tinycnn", 28, {0: 28, 1: 14, 2: 7, 3: 7}),
            ("resnet_imagenet", 224, {0: 112, 1: 56, 5: 56, 9: 28, 13: 14, 17: 7}),
            ("resnet_imagenet", 96, {0: 48, 1: 24, 17: 3}),
        ],
    )
    def test_maps_follow_the_images(self, name: str, size: int, sizes: dict[int, int]):
        network = architecture(name, num_classes=10, image_channels=3, image_size=size)
        assert network.image_shape == (3, size, size)
        assert {layer: network.convolutions[layer].out_size for layer in sizes} == sizes

    def test_each_has_a_size_of_its_own(self):
        assert default_image_size("resnet_imagenet") == 224
        assert default_image_size("resnet") == default_image_size("vgg8b") == 32
        network = architecture("resnet_imagenet", num_classes=10, image_channels=3)
        assert network.image_size == 224

    @pytest.mark.parametrize(
        ("name", "size", "sentence"),
        [
            (
                "resnet",
                50,
                r"--image-size 50 does not fit --arch resnet \(.* multiple of 8, such as",
            ),
            ("resnet", 12, "use a multiple of 8, such as --image-size 16"),
            ("vgg", 8, "use a multiple of 16, such as --image-size 16"),
            ("resnet_imagenet", 100, "use a multiple of 32, such as --image-size 96"),
        ],
    )
    def test_one_that_does_not_fit_is_answered_with_one_that_does(
        self, name: str, size: int, sentence: str
    ):
        with pytest.raises(UserError, match=sentence):
            architecture(name, num_classes=10, image_channels=3, image_size=size)

    def test_a_function_gets_the_size(self):
        network = architecture(
            f"{__name__}:returns_rows", num_classes=3, image_channels=1, image_size=12, width=6
        )
        assert network.image_shape == (1, 12, 12)
