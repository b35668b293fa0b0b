"""Untrusted images: what is refused, and what becomes of the rest."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from jobs.store import ObjectStore
from service.errors import DecoderBusy, ImageTooLarge, InvalidImage, UnsupportedMediaType
from service.settings import GatewaySettings
from service.uploads import Decoder, _to_8_bit, decode_image
from tests.service.conftest import image_bytes, pointers, problem


def decode(data: bytes, **limits: Any) -> np.ndarray[Any, Any]:
    """The pixels that are stored."""
    limits = {"max_pixels": 1_000_000, "max_side_px": 512} | limits
    decoded = decode_image(data, **limits)
    with Image.open(io.BytesIO(decoded.png)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.size == (decoded.width, decoded.height)
        assert set(image.info) <= set()
        return np.asarray(image)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def webp_header(width: int, height: int, flags: int = 0) -> bytes:
    """An extended WebP that claims this canvas."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + canvas
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def animation(kind: str) -> bytes:
    """Two frames."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG with a thousand scans that say nothing."""
    data = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    end = data.index(b"\xff\xda", start + 2) if data.count(b"\xff\xda") > 1 else len(data) - 2
    return data[:start] + data[start:end] * 1000 + data[start:]


REFUSED: dict[str, tuple[bytes, int, str, str]] = {
    "nothing": (b"", 422, "invalid_image", "empty"),
    "not an image": (b"hello world" * 9, 415, "unsupported_media_type", "not an image"),
    "zeros": (bytes(100), 415, "unsupported_media_type", "PNG, JPEG or WebP"),
    "GIF": (image_bytes(kind="GIF"), 415, "unsupported_media_type", "GIF"),
    "animated GIF": (animation("GIF"), 415, "unsupported_media_type", "animated"),
    "BMP": (image_bytes(kind="BMP"), 415, "unsupported_media_type", "BMP"),
    "TIFF": (image_bytes(kind="TIFF"), 415, "unsupported_media_type", "TIFF"),
    "SVG": (b"<svg xmlns='a'/>", 415, "unsupported_media_type", "SVG"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), 415, "unsupported_media_type", "HEIC"),
    "animated PNG": (animation("PNG"), 422, "invalid_image", "animated"),
    "animated WebP": (animation("WEBP"), 422, "invalid_image", "animated"),
    "20,000 x 20,000 PNG header": (png_header(20_000, 20_000), 422, "image_too_large", "pixels"),
    "8,000 x 8,000 PNG header": (png_header(8_000, 8_000), 422, "image_too_large", "8000"),
    "65,535 x 65,535 PNG header": (png_header(65_535, 65_535), 422, "image_too_large", "pixels"),
    "16,383² WebP header": (webp_header(16_383, 16_383), 422, "image_too_large", "16383"),
    "truncated PNG": (image_bytes((300, 300))[:-40], 422, "invalid_image", "truncated"),
    "truncated JPEG": (
        saved(Image.effect_noise((300, 300), 50), "JPEG")[:2000],
        422,
        "invalid_image",
        "truncated",
    ),
    "truncated WebP": (
        saved(Image.effect_noise((300, 300), 50), "WEBP")[:2000],
        422,
        "invalid_image",
        "truncated",
    ),
    "PNG signature alone": (b"\x89PNG\r\n\x1a\n", 422, "invalid_image", "damaged"),
    "JPEG signature alone": (b"\xff\xd8\xff\xe0", 422, "invalid_image", "damaged"),
    "WebP signature alone": (b"RIFF\0\0\0\0WEBP", 422, "invalid_image", "damaged"),
    "JPEG of a thousand scans": (jpeg_of_many_scans(), 422, "invalid_image", "scans"),
    "7 x 7": (image_bytes((7, 7)), 422, "invalid_image", "at least 8"),
    "1 x 2000": (image_bytes((1, 2000)), 422, "invalid_image", "at least 8"),
    "8 x 257": (image_bytes((8, 257)), 422, "invalid_image", "32 times"),
    "zip": (b"PK\x03\x04" + bytes(50), 415, "unsupported_media_type", "not an image"),
}


@pytest.mark.parametrize(("data", "status", "code", "hint"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("way", ["form", "body"])
def test_refused(
    client: httpx.Client, data: bytes, status: int, code: str, hint: str, way: str
) -> None:
    if way == "form":
        answer = client.post("/v1/uploads", files={"file": ("a.png", data, "image/png")})
    else:
        answer = client.post("/v1/uploads", content=data, headers={"Content-Type": "image/png"})
    assert hint in problem(answer, status, code)["detail"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("way", ["form", "body"])
def test_accepted_and_stored(
    client: httpx.Client, objects: ObjectStore, kind: str, way: str
) -> None:
    data = saved(Image.new("RGB", (48, 32), (200, 100, 50)), kind)
    if way == "form":
        answer = client.post("/v1/uploads", files={"file": ("x", data)})
    else:
        media_type = {"Content-Type": f"image/{kind.lower()}; q=1"}
        answer = client.post("/v1/uploads", content=data, headers=media_type)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    stored = objects.get_bytes(f"uploads/{found['id']}.png")
    assert (found["width"], found["height"]) == (48, 32)
    assert found["size_bytes"] == len(stored)
    assert found["sha256"] == hashlib.sha256(stored).hexdigest()
    pixels = np.asarray(Image.open(io.BytesIO(stored))).astype(int)
    assert np.abs(pixels - (200, 100, 50)).max() <= 4


def test_forms_that_are_not_one_file(client: httpx.Client) -> None:
    file = ("a.png", image_bytes())
    forms: list[dict[str, Any]] = [
        {"files": {"image": file}},
        {"files": {"file": (None, "text")}},
        {"files": {"file": file}, "data": {"title": "x"}},
    ]
    for form in forms:
        found = problem(client.post("/v1/uploads", **form), 422, "invalid_request")
        assert pointers(found) == ["#/file"]
    two = client.post("/v1/uploads", files=[("file", file), ("file", file)])
    problem(two, 400, "malformed_request")


def test_malformed_forms(client: httpx.Client) -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post(
            "/v1/uploads", content=b"no form", headers={"Content-Type": content_type}
        )
        problem(answer, 400, "malformed_request")


@pytest.mark.parametrize("content_type", ["application/json", "image/gif", "text/html", None])
def test_other_content_types(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post("/v1/uploads", content=image_bytes(), headers=headers)
    problem(answer, 415, "unsupported_media_type")


def test_upload_over_the_limit(client: httpx.Client, settings: GatewaySettings) -> None:
    size = settings.max_upload_bytes + 10_000
    answer = client.post("/v1/uploads", content=bytes(size), headers={"Content-Type": "image/png"})
    problem(answer, 413, "payload_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(size // 100_000 + 1):
            yield bytes(100_000)

    answer = client.post("/v1/uploads", content=chunks(), headers={"Content-Type": "image/png"})
    problem(answer, 413, "payload_too_large")


def test_sixteen_bit_greyscale_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    pixels = decode(saved(Image.fromarray(ramp)))
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 0.5
    assert pixels.max() == 255


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4"])
@pytest.mark.parametrize("height", [31, 32, 65])
def test_sixteen_bits_are_rounded_to_eight(kind: str, height: int) -> None:
    least, most = (0, 65535) if kind[1] == "u" else (-(2**31), 2**31 - 1)
    wide = np.random.default_rng(0).integers(least, most, (height, 40), endpoint=True)
    wide[0, :8] = [0, 128, 129, 257, 65406, 65407, 65408, 65535]
    wide[-1, :2] = [least, most]
    expected = (wide.clip(0, 65535) + 128) // 257
    assert (np.asarray(_to_8_bit(Image.fromarray(wide.astype(kind)))) == expected).all()


def test_every_sixteen_bit_value_is_rounded_as_before() -> None:
    wide = np.arange(65536).reshape(256, 256)
    narrow = np.asarray(_to_8_bit(Image.fromarray(wide.astype(np.uint16))))
    assert (narrow == (wide + 128) // 257).all()


def test_sixteen_bits_take_little_memory() -> None:
    image = Image.fromarray(np.zeros((1500, 1500), np.uint16))
    tracemalloc.start()
    try:
        _to_8_bit(image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 1500 * 1500


def test_transparency_becomes_black() -> None:
    half = np.zeros((16, 16, 4), np.uint8)
    half[..., :3] = 200
    half[:, 8:, 3] = 255
    for mode in ("RGBA", "LA"):
        pixels = decode(saved(Image.fromarray(half).convert(mode)))
        assert (pixels[:, :8] == 0).all()
        assert (pixels[:, 8:] == 200).all()


def test_palettes_and_their_transparency() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (decode(saved(image)) == (40, 50, 60)).all()
    assert (decode(saved(image, transparency=1)) == 0).all()


def test_a_transparent_colour_becomes_black() -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    assert (decode(saved(image, transparency=(255, 0, 0))) == 0).all()


def test_other_modes() -> None:
    assert (decode(saved(Image.new("1", (16, 16), 1))) == 255).all()
    assert (decode(saved(Image.new("L", (16, 16), 77))) == 77).all()
    cyan = decode(saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert np.abs(cyan.astype(int) - (0, 255, 255)).max() <= 3


def oriented(orientation: int, kind: str) -> bytes:
    """Red on the left, blue on the right, to be turned."""
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera maker"
    return saved(image, kind, exif=exif.tobytes())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_and_stripped(kind: str) -> None:
    turned = decode(oriented(6, kind))
    assert turned.shape == (64, 32, 3)
    assert turned[4, 16].argmax() == 0
    assert turned[60, 16].argmax() == 2
    mirrored = decode(oriented(2, kind))
    assert mirrored[16, 4].argmax() == 2
    assert b"camera" not in decode_image(oriented(6, kind), 10_000, 512).png


def test_every_orientation_is_pillows() -> None:
    from PIL import ImageOps

    for orientation in range(10):
        data = oriented(orientation, "PNG")
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert (decode(data) == np.asarray(expected)).all()


def test_a_broken_exif_block_does_not_matter() -> None:
    image = Image.new("RGB", (64, 32), "red")
    assert decode(saved(image, "JPEG", exif=b"Exif\0\0garbage")).shape == (32, 64, 3)


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        ((8, 8), (8, 8)),
        ((8, 256), (8, 256)),
        ((512, 512), (512, 512)),
        ((1000, 500), (512, 256)),
        ((700, 22), (512, 16)),
        ((513, 512), (512, 511)),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_sizes(size: tuple[int, int], stored: tuple[int, int], kind: str) -> None:
    assert decode(image_bytes(size, kind=kind)).shape[1::-1] == stored


def test_scaling_down_keeps_thin_lines_and_does_not_overshoot() -> None:
    image = np.zeros((1024, 1024), np.uint8)
    image[:, 510:514] = 255
    pixels = decode(saved(Image.fromarray(image)), max_pixels=2**20, max_side_px=256)
    assert pixels[:, 120].max() == 0
    assert pixels[:, 126:130].max() > 120


def test_the_decoder_is_bounded() -> None:
    decoder = Decoder(GatewaySettings(max_decodes=1, max_waiting_decodes=0))
    inside, leave = threading.Event(), threading.Event()

    def occupy() -> None:
        with decoder._slot():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=occupy)
    thread.start()
    inside.wait(10)
    with pytest.raises(DecoderBusy):
        decoder.decode(image_bytes())
    leave.set()
    thread.join()
    assert decoder.decode(image_bytes()).width == 40


def test_random_damage_is_always_a_clear_refusal_or_a_picture() -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        data = np.frombuffer(saved(Image.effect_noise((64, 64), 50), kind), np.uint8)
        for _ in range(60):
            damaged = data.copy()
            where = random.integers(0, len(data), 8)
            damaged[where] = random.integers(0, 256, 8)
            with suppress(InvalidImage, ImageTooLarge, UnsupportedMediaType):
                decode_image(damaged.tobytes(), 100_000, 512)
