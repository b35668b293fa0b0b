"""The frames of an animated drag as one file: WebP and GIF by Pillow, MP4 by PyAV where it is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec

from PIL import Image

from jobs.request import Animation


class UnsupportedFormat(Exception):
    """This worker cannot write files of that format; the message says what to ask for."""


def check_format(animation: Animation) -> None:
    """Whether the file can be written, asked before anything is computed.

    Raises:
        UnsupportedFormat: MP4 without PyAV.
    """
    if animation.format == "mp4" and find_spec("av") is None:
        raise UnsupportedFormat(
            "this worker writes no MP4: ask for webp or gif, or let the operator install the "
            "`video` extra (PyAV)"
        )


def encode_animation(frames: Sequence[Image.Image], animation: Animation) -> bytes:
    """A file that shows the frames for 1/fps s each: WebP and GIF for ever, MP4 once.

    GIF has 256 colours a frame and counts in hundredths of a second.
    """
    if animation.format == "mp4":
        return _mp4(frames, animation.fps)
    buffer = io.BytesIO()
    duration_ms = round(1000 / animation.fps)
    if animation.format == "gif":
        frames = [frame.quantize(dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
        options: dict[str, object] = {"duration": max(10, round(duration_ms, -1)), "disposal": 1}
    else:
        options = {"duration": duration_ms, "quality": 90, "method": 4}
    first, *rest = frames
    first.save(
        buffer, animation.format.upper(), save_all=True, append_images=rest, loop=0, **options
    )
    return buffer.getvalue()


def _mp4(frames: Sequence[Image.Image], fps: float) -> bytes:
    """H.264 in 4:2:0, which every browser shows; sizes are even, as those of all models are."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("h264", rate=rate, options={"crf": "18"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()
