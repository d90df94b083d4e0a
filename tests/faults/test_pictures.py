"""Pictures that are none or too large are refused by name; odd ones are read as they are meant."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Acmsao, refused
from PIL import Image

from acmsao_cli.data.images import open_picture, probe

pytestmark = pytest.mark.usefixtures("ends")

Make = Callable[[Path], None]


def content(data: bytes) -> Make:
    def make(file: Path) -> None:
        file.write_bytes(data)

    return make


def link_to(target: str) -> Make:
    def make(file: Path) -> None:
        file.symlink_to(target)

    return make


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        sum_of = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sum_of

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def bomb(side: int) -> bytes:
    """A PNG of one bit a pixel that is whole and holds side x side of them in little."""
    squeeze = zlib.compressobj(9)
    row = b"\0" + bytes((side + 7) // 8)
    rows = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))


def text_bomb() -> bytes:
    """A comment that unpacks to 200 MB."""
    words = b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9)
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(9 * 8))
    return png((b"IHDR", head), (b"zTXt", words), (b"IDAT", rows), (b"IEND", b""))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n"

REFUSED: dict[str, tuple[Make, str]] = {
    "no bytes": (content(b""), "the file is empty"),
    "text": (content(b"a picture of a cat"), "not a picture of a known format"),
    "web page": (content(b"<html>404</html>"), "not a picture of a known format"),
    "truncated png": (content(encoded(NOISE, "PNG")[:5000]), "cannot be decoded"),
    "truncated jpeg": (content(encoded(NOISE, "JPEG")[:900]), "cannot be decoded"),
    "truncated webp": (content(encoded(NOISE, "WEBP")[:900]), "picture.png"),
    "EPS": (content(EPS), "not a picture of a known format"),
    "bomb": (content(bomb(13_000)), "13000 x 13000 pixels exceeds 100 million"),
    "bomb in a comment": (content(text_bomb()), "cannot be decoded"),
    "pipe": (os.mkfifo, "not a regular file"),
    "device": (link_to("/dev/zero"), "a link that leaves the data folder"),
    "link to nothing": (link_to("nothing.png"), "a link to nothing"),
    "link to itself": (link_to("picture.png"), "a link to nothing"),
    "folder": (Path.mkdir, "no images to train on"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`data`, with a caption for picture.png."""
    place = tmp_path / "data"
    place.mkdir()
    (place / "picture.txt").write_text("a caption")
    return place


OURS = ("-s", "data.source=./data")


@pytest.mark.parametrize(("make", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_is_refused_before_the_model_is_looked_for(
    acmsao: Acmsao, sdxl: Path, folder: Path, make: Make, says: str
) -> None:
    assert len(REFUSED["bomb"][0].__closure__[0].cell_contents) < 500_000  # type: ignore[index]
    make(folder / "picture.png")
    gone = ("-s", "model.source=./nowhere")
    refused(acmsao("train", str(sdxl), *OURS, *gone), 3, "data", says)
    refused(acmsao("data", "check", str(sdxl), *OURS, *gone), 3, "data")
    assert not Path("runs").exists()
    assert not Path("canary").exists()


@pytest.mark.parametrize(("size", "says"), [((1, 1), "scaled up"), ((1, 4000), "cut away")])
def test_tiny_and_long_pictures_are_told(
    acmsao: Acmsao, sdxl: Path, folder: Path, size: tuple[int, int], says: str
) -> None:
    Image.new("RGB", size, "red").save(folder / "picture.png")
    done = acmsao("data", "check", str(sdxl), *OURS)
    assert done.code == 0, done.err
    assert says in done.out
    assert f"{size[0]} x {size[1]} -> " in done.out


# Read as they are meant

WIDE = Image.new("RGB", (48, 24), "red")
WIDE.paste("blue", (0, 0, 16, 24))
TWO = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
HALF_RED = Image.new("RGBA", (32, 32), (255, 0, 0, 128))
CLEAR = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
CLEAR.paste((0, 0, 255, 0), (0, 0, 16, 32))


def several(form: str) -> bytes:
    return encoded(TWO[0], form, save_all=True, append_images=TWO[1:], duration=100)


def palette() -> bytes:
    """Left the colour that is told to be transparent, right red."""
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 16, 32))
    return encoded(image, "PNG", transparency=0)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    return encoded(WIDE.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "PNG")


def cmyk() -> bytes:
    return encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)


WHITE, RED, BLUE = (255, 255, 255), (255, 0, 0), (0, 0, 255)
GOLDEN: dict[str, tuple[bytes, dict[tuple[int, int], tuple[int, int, int]]]] = {
    "animated gif": (several("GIF"), {(9, 9): RED}),
    "animated webp": (several("WEBP"), {(9, 9): RED}),
    "animated png": (several("PNG"), {(9, 9): RED}),
    "mpo": (several("MPO"), {(9, 9): RED}),
    "cmyk jpeg": (cmyk(), {(9, 9): RED}),
    "16-bit png": (sixteen_bits(), {(9, 9): (155, 155, 155)}),
    "palette with transparency": (palette(), {(4, 9): WHITE, (28, 9): RED}),
    "half transparent": (encoded(HALF_RED, "PNG"), {(9, 9): (255, 127, 127)}),
    "a hidden colour": (encoded(CLEAR, "PNG"), {(4, 9): WHITE, (28, 9): RED}),
    "a hidden colour in webp": (encoded(CLEAR, "WEBP", lossless=True), {(4, 9): WHITE}),
    "turned by exif": (turned(), {(4, 12): BLUE, (40, 12): RED}),
}


@pytest.mark.parametrize(("data", "pixels"), GOLDEN.values(), ids=GOLDEN)
def test_odd_pictures_have_the_colours_that_were_meant(
    data: bytes, pixels: dict[tuple[int, int], Any]
) -> None:
    picture = open_picture(data, "x")
    size = probe(data, "x")
    assert (picture.mode, picture.size) == ("RGB", (size.width, size.height))
    for spot, colour in pixels.items():
        assert np.allclose(picture.getpixel(spot), colour, atol=3), (spot, picture.getpixel(spot))


def test_odd_pictures_are_checked_and_their_frames_told(
    acmsao: Acmsao, sdxl: Path, folder: Path
) -> None:
    (folder / "picture.txt").unlink()
    for name, (data, _) in GOLDEN.items():
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(name)
    done = acmsao("data", "check", str(sdxl), *OURS, "-s", "data.resolution=32")
    assert done.code == 0, done.err
    assert done.out.count("has several frames; the first is used") == 3
    assert f"examples: {len(GOLDEN)}" in done.out
