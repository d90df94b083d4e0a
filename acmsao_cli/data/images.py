"""Pictures: opening them safely, and scaling and cropping them to a training size."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from acmsao_cli.data.files import open_regular, reason
from acmsao_cli.errors import ConfigError, DataError

# Only decoders that run in this process: Pillow would hand an EPS to an outside program.
PILLOW_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# A picture of this size takes 300 MB as RGB; a file of a few kilobytes can claim to be one.
MAX_PIXELS = 100_000_000

# No side of a bucket is shorter than half the resolution or longer than twice it: up to 4:1.
MAX_SIDE_RATIO = 2

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Probe:
    """What a picture's header says; width and height are those of the upright picture."""

    width: int
    height: int
    format: str
    animated: bool


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes one of a training size: scale to `scaled`, then cut `target` at `crop`.

    All pairs are (height, width) or (top, left), as SDXL's size conditioning counts them
    (arXiv:2307.01952, 2.2); `crop` is in the scaled picture.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @property
    def upscaled(self) -> bool:
        """Whether pixels have to be invented."""
        return self.scaled[0] > self.original[0]

    @property
    def kept(self) -> float:
        """The share of the picture that the crop leaves."""
        return math.prod(self.target) / math.prod(self.scaled)


@dataclass(frozen=True)
class FittedImage:
    """An RGB picture of a training size, and where it was cut from; pairs as in `Geometry`."""

    image: Image.Image
    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]


@lru_cache(maxsize=32)
def bucket_sizes(resolution: int, bucket_step: int) -> tuple[tuple[int, int], ...]:
    """The training sizes (height, width), sorted: multiples of `bucket_step`, at most resolution².

    Each side from half to twice the resolution is paired with the longest other side that fits.
    """
    if bucket_step > resolution:
        raise ConfigError(
            f"no bucket fits: data.bucket_step {bucket_step} is above data.resolution {resolution}",
            hint="--set data.bucket_step=8",
        )
    square = resolution // bucket_step * bucket_step
    sizes = {(square, square)}
    shortest = max(1, math.ceil(resolution / MAX_SIDE_RATIO / bucket_step))
    longest = resolution * MAX_SIDE_RATIO // bucket_step
    for steps in range(shortest, longest + 1):
        side = steps * bucket_step
        other = min(resolution**2 // side // bucket_step, longest)
        if other >= shortest:
            sizes |= {(side, other * bucket_step), (other * bucket_step, side)}
    return tuple(sorted(sizes))


@lru_cache(maxsize=4096)
def target_size(
    height: int, width: int, resolution: int, buckets: bool, bucket_step: int
) -> tuple[int, int]:
    """The training size (height, width) nearest in log aspect ratio; of equals, the larger."""
    if not buckets:
        return resolution, resolution
    aspect = math.log(height / width)

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - aspect), 9), -math.prod(size)

    return min(bucket_sizes(resolution, bucket_step), key=distance)


def geometry(height: int, width: int, resolution: int, buckets: bool, bucket_step: int) -> Geometry:
    """Scale until the picture just covers its training size, and cut from the centre."""
    target = target_size(height, width, resolution, buckets, bucket_step)
    scale = max(target[0] / height, target[1] / width)
    scaled = (max(target[0], round(height * scale)), max(target[1], round(width * scale)))
    crop = ((scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)
    return Geometry((height, width), scaled, crop, target)


def fit(image: Image.Image, resolution: int, buckets: bool, bucket_step: int) -> FittedImage:
    """Scale and crop `image` (RGB) to its bucket, or to resolution x resolution without buckets.

    Only the part that is kept is ever scaled, so a thin strip cannot grow into a huge picture.
    """
    plan = geometry(image.height, image.width, resolution, buckets, bucket_step)
    per_row, per_column = image.height / plan.scaled[0], image.width / plan.scaled[1]
    top, left = plan.crop
    box = (
        left * per_column,
        top * per_row,
        min(float(image.width), (left + plan.target[1]) * per_column),
        min(float(image.height), (top + plan.target[0]) * per_row),
    )
    scaled = image.resize(
        (plan.target[1], plan.target[0]), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0
    )
    scaled.info = {}  # a camera's notes and colour tables are no pixels
    return FittedImage(scaled, plan.original, plan.crop, plan.target)


def open_and_fit(
    opener: Callable[[], Image.Image], resolution: int, buckets: bool, bucket_step: int
) -> FittedImage:
    """What `fit` makes of the picture that `opener` opens: all that is done before the VAE."""
    return fit(opener(), resolution, buckets, bucket_step)


def open_picture(source: Path | bytes, place: str) -> Image.Image:
    """Decode to RGB, upright, with transparency on white; of several frames the first.

    Raises DataError, naming `place`, for whatever is not a whole picture of a known format.
    """
    with _decoding(place), _stream(source, place) as stream:
        image = _header(stream, place)
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        image = _rgb(image, place)
        return image if turn is None else image.transpose(turn)


def probe(source: Path | bytes, place: str) -> Probe:
    """Size and format from the header alone; the pixels may still turn out to be damaged."""
    with _decoding(place), _stream(source, place) as stream:
        image = _header(stream, place)
        width, height = image.size
        if _sideways(image):
            width, height = height, width
        name = "JPEG" if image.format == "MPO" else str(image.format)
        # The second picture of a phone's MPO is a depth map or the other eye, not a frame.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return Probe(width, height, name, animated)


@contextmanager
def _decoding(place: str) -> Iterator[None]:
    """Turn what Pillow raises into DataError and keep its warnings quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, KeyboardInterrupt, SystemExit):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(place) from error
    except Exception as error:  # damaged files make decoders raise nearly every class there is
        raise DataError(
            f"{place}: cannot be decoded: {reason(error)}",
            hint="save it anew or remove it",
        ) from error


def _stream(source: Path | bytes, place: str) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, place)


def _header(stream: BinaryIO, place: str) -> Image.Image:
    """Open without decoding; refuse what is empty, no picture, or too large."""
    if not stream.read(1):
        raise DataError(f"{place}: the file is empty", hint="remove it or put the picture back")
    stream.seek(0)
    try:
        image = Image.open(stream, formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{place}: not a picture of a known format",
            hint=f"formats: {', '.join(PILLOW_FORMATS)}",
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(place, f"{image.width} x {image.height} pixels")
    return image


def _too_large(place: str, size: str = "its size") -> DataError:
    return DataError(
        f"{place}: too large: {size} exceeds {MAX_PIXELS // 1_000_000} million pixels",
        hint="scale it down first; training does not use that many",
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or the EXIF block is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # a picture is not lost because its camera's notes are
        return 1


def _sideways(image: Image.Image) -> bool:
    """Whether turning the picture upright swaps its sides, as far as the header tells.

    Pillow turns TIFF by itself, and would decode a whole PNG to look for EXIF behind the pixels.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return False
    return _orientation(image) >= 5


def _rgb(image: Image.Image, place: str) -> Image.Image:
    """8-bit RGB of any mode that Pillow decodes."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _grey(image, place).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, place: str) -> Image.Image:
    """16-bit grey to 8 bits; Pillow's own conversion would clip at 255 and leave white."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{place}: pixels of type {image.mode} have no known range",
            hint="save it with 8 or 16 bits per channel",
        )
    return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
