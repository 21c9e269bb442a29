import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.config.kernels import BACKENDS, Kernels, format_kernels, parse_kernels

KERNELS = st.builds(Kernels, st.sampled_from(BACKENDS), st.sampled_from(BACKENDS))


@given(kernels=st.lists(KERNELS, min_size=1, max_size=20).map(tuple))
def test_formatted_kernels_parse_to_themselves(kernels: tuple[Kernels, ...]):
    assert parse_kernels(format_kernels(kernels), len(kernels)) == kernels


def test_one_backend_is_both_forward_and_gradient():
    assert parse_kernels("unfold, conv/winograd") == (
        Kernels("unfold", "unfold"),
        Kernels("conv", "winograd"),
    )


def test_one_entry_counts_for_all_layers():
    assert parse_kernels("unfold", 3) == (Kernels("unfold", "unfold"),) * 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "con",
            "--kernels: unknown 'con' (did you mean 'conv'?); an entry is FORWARD/GRADIENT, each "
            "of conv, unfold, winograd, amx",
        ),
        (
            "conv/conv/conv",
            "--kernels: unknown 'conv/conv/conv'; an entry is FORWARD/GRADIENT, each of conv, "
            "unfold, winograd, amx",
        ),
        (
            "conv,unfold",
            "--kernels names 2 layers, but the network has 3; give one entry a layer, or a single "
            "one for all",
        ),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str):
    with pytest.raises(UserError) as caught:
        parse_kernels(text, 3)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("text", ["", ",", "conv,", "/", "conv/"])
def test_an_empty_entry_is_unknown(text: str):
    with pytest.raises(UserError, match="--kernels: unknown"):
        parse_kernels(text)
