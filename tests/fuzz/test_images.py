"""Image files: any bytes give pixels or a mistake."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rayff.config.errors import UserError
from rayff.data.images import (
    FORMATS,
    MAX_PIXELS,
    ImageFormat,
    decode_image,
    holds_grey,
    read_image,
)
from tests.data.files import random_pixels
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of what is damaged

SUFFIXES = ["PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP"]


def saved(mode: str, kind: str, size: int = 12) -> bytes:
    target = io.BytesIO()
    Image.fromarray(random_pixels(0, size=size, channels=3)).convert(mode).save(target, kind)
    return target.getvalue()


IMAGES = {kind: saved("RGB", kind) for kind in SUFFIXES} | {
    "palette": saved("P", "PNG"),
    "bits": saved("1", "PNG"),
    "alpha": saved("RGBA", "PNG"),
    "grey and alpha": saved("LA", "PNG"),
    "print": saved("CMYK", "TIFF"),
    "numbers": saved("I", "TIFF"),
    "fractions": saved("F", "TIFF"),
    "lab": saved("LAB", "TIFF"),
}


def check(folder: Path, content: bytes) -> None:
    path = folder / "image"
    path.write_bytes(content)
    for channels in (1, 3):
        image = read_or_refused(lambda c=channels: read_image(path, ImageFormat(c, 32)), folder)
        if image is not None:
            assert image.shape == (channels, 32, 32)
            assert image.dtype == np.uint8


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - {"lab", "numbers", "fractions"}))
def test_every_kind_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "image").write_bytes(IMAGES[name])
    for channels in (1, 3):
        assert read_image(tmp_path / "image", ImageFormat(channels, 32)).shape == (
            channels,
            32,
            32,
        )


@cases(500)
@given(data=st.data(), name=st.sampled_from(sorted(IMAGES)))
def test_with_bytes_changed(tmp_path: Path, data: st.DataObject, name: str) -> None:
    check(tmp_path, data.draw(broken_bytes(IMAGES[name])))


@cases(200)
@given(
    magic=st.sampled_from(
        [image[:12] for image in IMAGES.values()] + [b"%!PS-Adobe-3.0 EPSF-3.0"]
    ),
    rest=st.binary(max_size=200),
)
def test_of_any_bytes_behind_a_known_beginning(tmp_path: Path, magic: bytes, rest: bytes) -> None:
    check(tmp_path, magic + rest)


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(8192, 8193), (2**31 - 1, 1), (2**16, 2**16), (2**31 - 1, 2**31 - 1)]
)
def test_one_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_that_claims(width, height))
    with pytest.raises(UserError, match=r"image\.png is not an image that can be decoded"):
        read_image(path, ImageFormat(3, 32))
    with pytest.raises(ValueError, match="pixels"):
        holds_grey(path.read_bytes())
    check(tmp_path, path.read_bytes())


def test_the_largest_is_decoded() -> None:
    content = io.BytesIO()
    Image.new("1", (8192, MAX_PIXELS // 8192)).save(content, "PNG")
    assert decode_image(content.getvalue(), ImageFormat(1, 32)).pixels.max() == 0


def test_a_drawing_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand EPS to Ghostscript."""
    content = io.BytesIO()
    Image.new("L", (8, 8)).save(content, "EPS")
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kw: started.append(args))
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kw: started.append(args))
    with pytest.raises(ValueError, match="no known image format"):
        decode_image(content.getvalue(), ImageFormat(1, 32))
    assert not started
    assert "EPS" not in FORMATS
