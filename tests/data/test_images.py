"""Pictures: buckets, cropping, and files that are not what they seem."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from acmsao_cli.data.images import MAX_PIXELS, bucket_sizes, fit, geometry, open_picture, probe
from acmsao_cli.errors import ConfigError, DataError

RESOLUTIONS = st.sampled_from([16, 64, 100, 128, 512, 1000, 1024])
STEPS = st.sampled_from([1, 8, 16, 64])
SIDES = st.integers(1, 6000)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header promises what its body does not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@given(resolution=RESOLUTIONS, step=STEPS)
@settings(deadline=None)
def test_buckets_are_multiples_of_the_step_within_the_area(resolution: int, step: int) -> None:
    if step > resolution:
        with pytest.raises(ConfigError, match="bucket_step"):
            bucket_sizes(resolution, step)
        return
    sizes = bucket_sizes(resolution, step)
    assert len(set(sizes)) == len(sizes)
    assert set(sizes) == {(width, height) for height, width in sizes}
    for height, width in sizes:
        assert height % step == width % step == 0
        assert 0 < height * width <= resolution**2
        assert 1 / 4 <= height / width <= 4


def test_buckets_of_sdxl_are_those_it_was_trained_on() -> None:
    assert {(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1536)} <= set(
        bucket_sizes(1024, 64)
    )


@given(height=SIDES, width=SIDES, resolution=RESOLUTIONS, buckets=st.booleans())
@settings(deadline=None)
def test_the_crop_lies_in_the_scaled_picture_and_in_its_middle(
    height: int, width: int, resolution: int, buckets: bool
) -> None:
    plan = geometry(height, width, resolution, buckets=buckets, bucket_step=16)
    assert plan.original == (height, width)
    if not buckets:
        assert plan.target == (resolution, resolution)
    for scaled, crop, target in zip(plan.scaled, plan.crop, plan.target, strict=True):
        assert crop == (scaled - target) // 2 >= 0
    assert 0 in plan.crop
    assert 0 < plan.kept <= 1


@given(height=st.integers(100, 3000), width=st.integers(100, 3000))
@settings(deadline=None)
def test_no_other_bucket_is_nearer_in_aspect(height: int, width: int) -> None:
    chosen = geometry(height, width, 512, buckets=True, bucket_step=64).target

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1]) - math.log(height / width))

    assert distance(chosen) <= min(map(distance, bucket_sizes(512, 64))) + 1e-9


@given(height=st.integers(1, 300), width=st.integers(1, 300), buckets=st.booleans())
@settings(deadline=None, max_examples=50)
def test_a_fitted_picture_has_its_training_size(height: int, width: int, buckets: bool) -> None:
    fitted = fit(Image.new("RGB", (width, height), "teal"), 64, buckets, 8)
    assert fitted.image.size == fitted.target_size[::-1]
    assert fitted.image.mode == "RGB"
    assert fitted.image.getextrema() == ((0, 0), (128, 128), (128, 128))


def test_fitting_equals_scaling_and_then_cropping() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    fitted, plan = fit(picture, 128, True, 16), geometry(500, 700, 128, True, 16)
    top, left = plan.crop
    whole = picture.resize(plan.scaled[::-1], Image.Resampling.LANCZOS)
    cut = whole.crop((left, top, left + plan.target[1], top + plan.target[0]))
    difference = np.abs(np.asarray(cut, int) - np.asarray(fitted.image, int))
    assert (fitted.original_size, fitted.crop) == ((500, 700), (0, 6))
    assert difference.max() <= 2


def test_a_picture_of_the_training_size_is_not_changed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(fit(Image.fromarray(noise), 64, True, 8).image), noise)


def test_a_thin_strip_does_not_grow_into_a_huge_picture() -> None:
    assert fit(Image.new("RGB", (1, 60000)), 1024, True, 64).image.size == (512, 2048)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(form: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 24), "red")
    upright.paste("blue", (0, 0, 16, 24))
    upright.paste("lime", (0, 0, 16, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif)
    seen = open_picture(data, "x")
    assert seen.size == (48, 24)
    found = probe(data, "x")
    assert (found.width, found.height, found.format) == (48, 24, form)
    for spot in ((4, 3), (4, 20), (40, 12)):
        assert np.allclose(seen.getpixel(spot), upright.getpixel(spot), atol=40), spot


HALF_RED = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
PALETTE = Image.new("RGBA", (4, 4), (0, 0, 255, 0)).convert("P")
KINDS = {
    "rgb": (encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG"), (1, 2, 3)),
    "bilevel": (encoded(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
    "grey": (encoded(Image.new("L", (4, 4), 77), "PNG"), (77, 77, 77)),
    "grey alpha": (encoded(Image.new("LA", (4, 4), (0, 0)), "PNG"), (255, 255, 255)),
    "alpha on white": (encoded(HALF_RED, "PNG"), (255, 127, 127)),
    "webp alpha": (encoded(HALF_RED, "WEBP", lossless=True), (255, 127, 127)),
    "palette": (encoded(Image.new("P", (4, 4), 0), "PNG"), (0, 0, 0)),
    "transparent palette": (encoded(PALETTE, "PNG", transparency=bytes(256)), (255, 255, 255)),
    "transparent gif": (encoded(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))), (255,) * 3),
    "transparent rgb": (
        encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        (255, 255, 255),
    ),
    "16 bits": (encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)), "PNG"), (155,) * 3),
    "16 bits tiff": (
        encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)), "TIFF"),
        (255,) * 3,
    ),
    "cmyk": (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "bmp": (encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "BMP"), (9, 8, 7)),
}


@pytest.mark.parametrize(("data", "colour"), KINDS.values(), ids=KINDS)
def test_every_kind_of_pixel_becomes_rgb(data: bytes, colour: tuple[int, int, int]) -> None:
    picture = open_picture(data, "x")
    assert picture.mode == "RGB"
    assert np.allclose(picture.getpixel((1, 1)), colour, atol=1)


def test_of_several_frames_the_first_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
        assert probe(data, "x").animated, form
        assert np.allclose(open_picture(data, "x").getpixel((1, 1)), (255, 0, 0), atol=8)
    assert not probe(encoded(frames[0], "PNG"), "x").animated


GOOD = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "PNG")
HOSTILE = {
    "zero bytes": (b"", "the file is empty"),
    "text": (b"not a picture", "not a picture of a known format"),
    "html": (b"<html><body>404</body></html>", "not a picture"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "truncated": (GOOD[: len(GOOD) // 2], "cannot be decoded"),
    "truncated jpeg": (
        encoded(Image.effect_noise((64, 64), 50), "JPEG")[:700],
        "cannot be decoded",
    ),
    "bomb above Pillow's limit": (png_claiming(60000, 60000), "too large"),
    "bomb below Pillow's limit": (png_claiming(12000, 12000), "too large"),
    "no pixels": (png_claiming(0, 0), "x: "),
    "32-bit float": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "no known range"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_whole_picture_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        open_picture(data, "x")
    assert refused.value.message.startswith("x: ")


def test_a_bomb_is_seen_by_its_header() -> None:
    side = math.isqrt(MAX_PIXELS) + 1
    with pytest.raises(DataError, match="too large"):
        probe(png_claiming(side, side), "x")


@given(
    form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_damaged_pictures_decode_or_raise_data_error(
    form: str, changes: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(encoded(Image.new("RGB", (16, 16), "teal"), form))
    for position, value in changes:
        data[int(position * len(data))] = value
    for look in (open_picture, probe):
        with suppress(DataError):
            look(bytes(data[: int(keep * len(data)) + 1]), "x")


def test_a_pipe_does_not_hang_and_a_missing_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        probe(tmp_path / "pipe.png", "pipe.png")
    with pytest.raises(DataError, match=r"gone.png: cannot be opened: No such file"):
        open_picture(tmp_path / "gone.png", "gone.png")
    with pytest.raises(DataError, match="not a regular file"):
        open_picture(tmp_path, "folder")
