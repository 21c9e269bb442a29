import numpy as np
import pytest
from PIL import Image

from rayff.config.errors import UserError
from rayff.data.images import ImageFormat, ImageSet, read_image
from rayff.data.images import decode_image as decode
from tests.data.files import encoded, png, random_pixels

GREY, COLOUR = ImageFormat(1, 32), ImageFormat(3, 32)


def decode_image(data, channels):
    return decode(data, ImageFormat(channels, 32)).pixels


def test_a_grey_png_comes_back_pixel_for_pixel():
    pixels = random_pixels(0)
    decoded = decode_image(encoded(pixels), channels=1)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (1, 32, 32)
    np.testing.assert_array_equal(decoded[0], pixels)


def test_a_colour_png_comes_back_pixel_for_pixel_with_its_channels_first():
    pixels = random_pixels(0, channels=3)
    decoded = decode_image(encoded(pixels), channels=3)
    assert decoded.shape == (3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(decoded[channel], pixels[:, :, channel])


def test_an_image_of_28_by_28_is_resized_as_pillow_does():
    pixels = random_pixels(1, size=28)
    resized = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(encoded(pixels), 1)[0], np.asarray(resized))


def test_a_constant_image_stays_constant_when_it_is_resized():
    data = encoded(np.full((7, 50, 3), (10, 20, 30), np.uint8))
    decoded = decode_image(data, 3)
    assert decoded.shape == (3, 32, 32)
    assert [set(channel.ravel().tolist()) for channel in decoded] == [{10}, {20}, {30}]


def test_a_grey_image_read_as_colour_has_three_equal_channels():
    pixels = random_pixels(2)
    for channel in decode_image(encoded(pixels), channels=3):
        np.testing.assert_array_equal(channel, pixels)


def test_a_colour_image_read_as_grey_is_its_luminance():
    red = np.zeros((32, 32, 3), np.uint8)
    red[:, :, 0] = 255
    assert set(decode_image(encoded(red), 1).ravel().tolist()) == {76}  # 0.299 * 255


def test_a_16_bit_image_keeps_its_high_byte():
    pixels = np.full((32, 32), 0x4080, np.uint16)
    assert set(decode_image(encoded(pixels), 1).ravel().tolist()) == {0x40}


def test_a_jpeg_is_decoded():
    flat = np.full((32, 32, 3), 128, np.uint8)
    assert set(decode_image(encoded(flat, "JPEG"), 3).ravel().tolist()) == {128}


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(0)[:100], encoded(random_pixels(0, size=64, channels=3), "JPEG")[:900]],
    ids=["empty", "text", "cut PNG", "cut JPEG"],
)
def test_bytes_that_are_no_image_are_a_plain_value_error(data: bytes):
    with pytest.raises(ValueError, match="image") as caught:
        decode_image(data, 1)
    assert type(caught.value) is ValueError


def test_an_image_of_absurd_size_is_a_plain_value_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="decompression bomb") as caught:
        decode_image(png(0), 1)
    assert type(caught.value) is ValueError


def test_an_image_file_is_read_as_its_bytes_are(tmp_path):
    path = tmp_path / "seven.png"
    path.write_bytes(png(3))
    np.testing.assert_array_equal(read_image(path, GREY)[0], random_pixels(3))


def test_a_missing_image_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the image .*seven\.png: No such file"):
        read_image(tmp_path / "seven.png", GREY)


def test_a_folder_in_place_of_an_image_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the image .*: Is a directory"):
        read_image(tmp_path, GREY)


def test_a_file_that_is_no_image_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("seven")
    with pytest.raises(UserError, match=r"notes\.txt is not an image .*: give a PNG, JPEG"):
        read_image(path, GREY)


class TestImageSet:
    def test_its_length_is_the_number_of_images(self):
        images = ImageSet(images=np.zeros((3, 1, 32, 32), np.uint8), labels=np.arange(3))
        assert len(images) == 3

    def test_taking_images_takes_their_labels_along(self):
        pixels = np.zeros((3, 1, 32, 32), np.uint8)
        pixels[2] = 9
        taken = ImageSet(images=pixels, labels=np.array([5, 6, 7])).take(np.array([2, 0]))
        assert taken.labels.tolist() == [7, 5]
        assert taken.images[:, 0, 0, 0].tolist() == [9, 0]

    def test_images_and_labels_of_different_number_are_refused(self):
        with pytest.raises(ValueError, match=r"images of shape \(2, 1, 32, 32\)"):
            ImageSet(images=np.zeros((2, 1, 32, 32), np.uint8), labels=np.arange(3))

    def test_images_of_another_type_are_refused(self):
        with pytest.raises(ValueError, match="images are float32, expected uint8"):
            ImageSet(images=np.zeros((3, 1, 32, 32), np.float32), labels=np.arange(3))
