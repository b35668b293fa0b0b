"""The only place that opens untrusted images: header and caps first, then a bounded decode.

What comes in is a PNG, JPEG or WebP file of any size, mode and orientation. What goes out is an
8-bit RGB PNG without metadata, at most `stored_image_side_px` long:

- EXIF orientation is applied; then every metadata chunk is gone, since only pixels are written.
- Transparency is composited over black, which is "nothing here" in pose, depth and edge maps.
- 16-bit greyscale keeps its full range: 65535 becomes 255.
- CMYK, palettes, bilevel and greyscale become RGB. Colour profiles are not applied.
- Scaling down averages without overshoot (Hamming), so that thin lines keep their values.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from service.errors import DecoderBusy, ImageTooLarge, InvalidImage, UnsupportedMediaType
from service.settings import GatewaySettings

MIN_SIDE_PX = 8
MAX_ASPECT_RATIO = 32
MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten; thousands of empty ones are a way to burn time."""

_WAIT_S = 20.0
_STRIP_ROWS = 32
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "HEIC, AVIF or video"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG"),
)


@dataclass(frozen=True)
class DecodedImage:
    """A control image that is safe to keep: an RGB PNG without metadata."""

    png: bytes
    sha256: str
    width: int
    height: int
    original_width: int
    original_height: int


class Decoder:
    """Decodes a bounded number of images at a time; a bounded number waits for its turn."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._slots = threading.BoundedSemaphore(settings.max_decodes)
        self._admitted = threading.BoundedSemaphore(
            settings.max_decodes + settings.max_waiting_decodes
        )

    def decode(self, data: bytes) -> DecodedImage:
        """Check and normalise one file; call it from a thread, never from the event loop.

        Raises:
            UnsupportedMediaType: not a PNG, JPEG or WebP file.
            ImageTooLarge: more pixels than `max_image_pixels`, by its header.
            InvalidImage: broken, animated, tiny or too elongated.
            DecoderBusy: too many images are waiting already.
        """
        with self._slot():
            return decode_image(
                data, self._settings.max_image_pixels, self._settings.stored_image_side_px
            )

    @contextmanager
    def _slot(self) -> Iterator[None]:
        message = "too many images are being decoded; send it again in a few seconds"
        if not self._admitted.acquire(blocking=False):
            raise DecoderBusy(message)
        try:
            if not self._slots.acquire(timeout=_WAIT_S):
                raise DecoderBusy(message)
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._admitted.release()


def decode_image(data: bytes, max_pixels: int, max_side_px: int) -> DecodedImage:
    """Check and normalise one file; see the module's docstring.

    Args:
        data: the whole file.
        max_pixels: largest width × height by the header; nothing larger is decoded.
        max_side_px: longer results are scaled down to it.
    """
    check_format(data)
    check_webp_canvas(data, max_pixels)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            original = image.size
            _check_header(image, max_pixels)
            normalised = _decode(image, max_side_px)
    except (InvalidImage, ImageTooLarge):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image has more than {max_pixels:,} pixels") from error
    except Exception as error:  # whatever a parser raises on hostile bytes is the file's fault
        raise InvalidImage(
            "the image cannot be decoded: the file is truncated or damaged; save it again"
        ) from error
    png = _encode(normalised)
    return DecodedImage(png, hashlib.sha256(png).hexdigest(), *normalised.size, *original)


def check_format(data: bytes) -> None:
    """Look at the first bytes alone.

    Raises:
        UnsupportedMediaType: the file is none of PNG, JPEG and WebP; says what it is, if known.
        InvalidImage: nothing was sent, or a JPEG has more scans than `MAX_JPEG_SCANS`.
    """
    if not data:
        raise InvalidImage("the image is empty: no bytes were sent")
    if data.startswith(b"\xff\xd8\xff"):
        if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
            raise InvalidImage(f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it again")
        return
    if data.startswith(b"\x89PNG\r\n\x1a\n") or _is_webp(data):
        return
    for offset, magic, name in _OTHER_FORMATS:
        if data.startswith(magic, offset):
            raise UnsupportedMediaType(
                f"this is a {name} file, animated or not it is not accepted; "
                "send a single picture as PNG, JPEG or WebP"
            )
    raise UnsupportedMediaType("this is not an image that can be read; send PNG, JPEG or WebP")


def check_webp_canvas(data: bytes, max_pixels: int) -> None:
    """Check a WebP's canvas before Pillow allocates it; other formats wait for `_check_header`.

    Raises:
        ImageTooLarge: more pixels than `max_pixels`.
        InvalidImage: animated.
    """
    if not (_is_webp(data) and data[12:16] == b"VP8X" and len(data) >= 30):
        return
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    _check_pixels(width, height, max_pixels)
    if data[20] & 0b10:
        raise InvalidImage("the image is animated; send a single picture")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels by its header, more than "
            f"{max_pixels:,}; scale it down"
        )


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    _check_pixels(width, height, max_pixels)
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise InvalidImage(
            f"the image is animated ({getattr(image, 'n_frames', 0)} frames); send a single picture"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise InvalidImage(
            f"the image has {width} x {height} pixels; both sides must be at least {MIN_SIDE_PX}"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InvalidImage(
            f"the image has {width} x {height} pixels; the long side must not be more than "
            f"{MAX_ASPECT_RATIO} times the short one; crop it"
        )


def _decode(image: Image.Image, max_side_px: int) -> Image.Image:
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (max_side_px, max_side_px))
    image.load()
    orientation = _orientation(image)
    picture = _scale_down(_to_8_bit(image), max_side_px)
    if picture.mode == "RGBA":
        background = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(background, picture)
    picture = picture.convert("RGB")
    if orientation in _TRANSPOSE:
        picture = picture.transpose(_TRANSPOSE[orientation])
    return picture


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # a broken EXIF block is no reason to refuse the picture
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _to_8_bit(image: Image.Image) -> Image.Image:
    """L, RGB or RGBA, as the file's mode and transparency ask for."""
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """L, rounded; in strips, so that what numpy takes does not grow with the picture."""
    grey = Image.new("L", image.size)
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        strip = np.asarray(image.crop((0, top, image.width, bottom)))
        wide = strip.astype(np.int32).clip(0, 65535)
        grey.paste(Image.fromarray(((wide + 128) // 257).astype(np.uint8)), (0, top))
    return grey


def _scale_down(image: Image.Image, max_side_px: int) -> Image.Image:
    longest = max(image.size)
    if longest <= max_side_px:
        return image
    width, height = (max(1, round(side * max_side_px / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.HAMMING)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
