import pytest

from rayff.config.text import is_path, is_plain, layer_range, plural, printable


@pytest.mark.parametrize("text", ["", "cat", "Käse \u00a0 猫", "👩\u200d🔬", "[red]"])
def test_ordinary_text_is_plain(text: str):
    assert is_plain(text)
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31mcat", "\\x1b[31mcat"), ("a\rb", "a\\rb"), ("\ud800", "\\ud800"), ("\0", "\\x00")],
)
def test_control_characters_and_lone_surrogates_are_escaped(text: str, shown: str):
    assert not is_plain(text)
    assert printable(text) == shown
    assert is_plain(printable(text))


def test_a_line_end_is_not_plain_and_stays():
    assert not is_plain("a\nb")
    assert printable("a\nb") == "a\nb"


@pytest.mark.parametrize("value", [None, 3, b"cat", ["cat"]])
def test_other_types_are_not_plain(value: object):
    assert not is_plain(value)


def test_a_path_has_no_nul_and_can_be_encoded():
    assert is_path("runs/first")
    assert is_path("runs/\udcff")  # a name that is not UTF-8, as Python reads it
    assert not is_path("a\0b")
    assert not is_path("\ud800")


def test_counts_and_ranges_of_one_are_singular():
    assert [plural(number, "epoch") for number in (1, 2, 1000)] == [
        *("1 epoch", "2 epochs", "1,000 epochs")
    ]
    assert [layer_range(3, 3), layer_range(1, 3)] == ["layer 3", "layers 1-3"]
