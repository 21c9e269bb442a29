import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.config.kernels import METHODS, Kernels, format_kernels, parse_kernels
from rayff.config.train_config import TrainConfig

KERNELS = st.builds(Kernels, st.sampled_from(METHODS), st.sampled_from(METHODS))


@given(kernels=st.lists(KERNELS, min_size=1, max_size=20).map(tuple))
def test_what_is_written_is_read_again(kernels: tuple[Kernels, ...]):
    assert parse_kernels(format_kernels(kernels), len(kernels)) == kernels


def test_one_method_is_both():
    assert parse_kernels("unfold, conv/winograd") == (
        Kernels("unfold", "unfold"),
        Kernels("conv", "winograd"),
    )


def test_one_entry_is_every_layers():
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
    with pytest.raises(UserError) as refused:
        parse_kernels(text, 3)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("text", ["", ",", "conv,", "/", "conv/"])
def test_what_is_empty_is_unknown(text: str):
    with pytest.raises(UserError, match="--kernels: unknown"):
        parse_kernels(text)


def test_a_run_refuses_them_at_once_and_beside_the_plain_rule():
    with pytest.raises(UserError, match="unknown 'fast'"):
        TrainConfig(kernels="fast")
    with pytest.raises(UserError, match="leave out --kernels or --rule plain"):
        TrainConfig(kernels="conv", rule="plain")


def test_a_resumed_run_may_name_the_same_kernels_in_fewer_words():
    made = TrainConfig(kernels="conv,conv,conv,conv")
    made.check_resumes(TrainConfig(kernels="conv"))
    made.check_resumes(TrainConfig())
    with pytest.raises(UserError, match="--kernels unfold: the run was made with conv,conv"):
        made.check_resumes(TrainConfig(kernels="unfold"))
