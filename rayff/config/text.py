"""Text: checks of untrusted text, and plurals."""

from __future__ import annotations

import os
import unicodedata


def is_plain(text: object) -> bool:
    """Return whether this is text without control characters and lone surrogates.

    The first could steer a terminal, the second have no place in UTF-8.
    """
    return isinstance(text, str) and not any(
        unicodedata.category(character) in ("Cc", "Cs") for character in text
    )


def printable(text: str) -> str:
    """Return the text with escapes where it is not plain, or no character; line ends stay."""

    def shown(character: str) -> bool:
        return is_plain(character) and unicodedata.category(character) not in ("Cn", "Co")

    return "".join(
        character if character == "\n" or shown(character) else repr(character)[1:-1]
        for character in text
    )


def is_path(text: str) -> bool:
    """Return whether a file could have this name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def layer_range(first: int, last: int) -> str:
    """Return layer 3, layers 1-3."""
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def plural(number: int, word: str) -> str:
    """Return 1 epoch, 2 epochs."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
