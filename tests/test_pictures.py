"""Pictures and arrays from a person's disk."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ffkern.data.pictures import read_pictures

GREY, COLOUR = (1, 8, 8), (3, 8, 8)
VALUES = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
VALUES[[0, -1]], VALUES[:, [0, -1]] = 0, 0  # a dark border, as the data sets have


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def close(rows, values, step=1.01):
    """Within one step of 255."""
    np.testing.assert_allclose(255 * rows.numpy().reshape(values.shape), values, rtol=0, atol=step)


# ---------------------------------------------------------------- pictures


def test_a_grey_picture_is_exact(tmp_path):
    rows, changes = read_pictures(saved(tmp_path, Image.fromarray(VALUES)), GREY)
    assert (rows.shape, rows.dtype, changes) == ((1, 64), torch.float32, [])
    assert torch.equal(rows, torch.from_numpy(VALUES.reshape(1, -1).astype(np.float32)) / 255)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "P", "palette of 256", "I;16", "jpeg", "bmp", "gif"])
def test_the_same_picture_in_other_formats(tmp_path, kind):
    image = Image.fromarray(VALUES)
    name, step = "x.png", 1.01
    if kind in ("RGB", "RGBA", "LA", "P"):
        image = image.convert(kind)
    elif kind == "palette of 256":
        image = image.convert("RGB").quantize(256)
    elif kind == "I;16":
        image = Image.fromarray(VALUES.astype(np.uint16) * 257)
    elif kind == "jpeg":
        name, step = "x.jpg", 40
    else:
        name = f"x.{kind}"
    path = saved(tmp_path, image, name, **({"quality": 95} if kind == "jpeg" else {}))
    rows, changes = read_pictures(path, GREY)
    assert changes == []
    close(rows, VALUES, step)


def test_one_bit(tmp_path):
    image = Image.fromarray(VALUES).point(lambda v: 255 * (v > 127)).convert("1")
    rows, _ = read_pictures(saved(tmp_path, image), GREY)
    assert torch.equal(rows, torch.from_numpy((VALUES > 127).reshape(1, -1)).float())


def test_colour_is_planar_and_grey_is_luminance(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels))
    rows, changes = read_pictures(path, COLOUR)
    assert (rows.shape, changes) == ((1, 192), [])
    close(rows, pixels.transpose(2, 0, 1))
    grey, _ = read_pictures(path, GREY, invert=False)
    close(grey, pixels @ np.array([0.299, 0.587, 0.114]))
    again, _ = read_pictures(saved(tmp_path, Image.fromarray(VALUES)), COLOUR)
    close(again, np.stack([VALUES] * 3))


def test_numbers_of_other_widths(tmp_path):
    tall = Image.fromarray(np.full((8, 8), 2**20, np.int32))
    for image, text in ((tall, "more than 16 bits"), (Image.new("F", (8, 8), 0.5), "floating-point numbers")):
        with pytest.raises(ValueError, match=rf"x\.tiff cannot be read as a picture: it holds .*{text}"):
            read_pictures(saved(tmp_path, image, "x.tiff"), GREY)


def test_what_is_transparent_lies_on_white(tmp_path):
    image = Image.fromarray(np.full((8, 8, 4), (0, 0, 0, 0), dtype=np.uint8))
    image.putpixel((3, 2), (0, 0, 0, 255))
    rows, changes = read_pictures(saved(tmp_path, image), GREY, invert=False)
    wanted = torch.ones(8, 8)
    wanted[2, 3] = 0
    assert torch.equal(rows.reshape(8, 8), wanted)
    rows, changes = read_pictures(saved(tmp_path, image), GREY)
    assert torch.equal(rows.reshape(8, 8), 1 - wanted)
    assert changes == ["dark on light, so light and dark were swapped (--no-invert keeps them)"]


@pytest.mark.parametrize("size", [(16, 16), (3, 30), (1, 1), (8, 9), (500, 200)])
def test_other_sizes_are_resized_and_said(tmp_path, size):
    rows, changes = read_pictures(saved(tmp_path, Image.new("L", size, 51)), GREY)
    assert changes == [f"resized from {size[0]} x {size[1]} to 8 x 8"]
    close(rows, np.full((8, 8), 51))


def test_height_and_width_are_not_mixed_up(tmp_path):
    wide = np.arange(8 * 5, dtype=np.uint8).reshape(5, 8)
    rows, changes = read_pictures(saved(tmp_path, Image.fromarray(wide)), (1, 5, 8))
    assert changes == []
    close(rows, wide)


@pytest.mark.parametrize(("border", "swapped"), [(0, False), (127, False), (128, True), (255, True)])
@pytest.mark.parametrize("invert", [None, True, False])
def test_light_borders_are_swapped(tmp_path, border, swapped, invert):
    values = np.full((8, 8), 255 - border, np.uint8)  # what lies inside must not count
    values[[0, -1]], values[:, [0, -1]] = border, border
    rows, changes = read_pictures(saved(tmp_path, Image.fromarray(values)), GREY, invert)
    swapped = swapped if invert is None else invert
    close(rows, 255 - values.astype(int) if swapped else values, 0.01)
    assert bool(changes) == (swapped and invert is None)


def test_colour_pictures_are_never_swapped_unasked(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 8), "white"))
    assert read_pictures(path, COLOUR)[0].min() == 1
    assert read_pictures(path, COLOUR, True)[0].max() == 0


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("shape", "of", "rows"),
    [
        ((8, 8), GREY, 1), ((64,), GREY, 1), ((5, 8, 8), GREY, 5), ((5, 64), GREY, 5), ((5, 8, 8, 1), GREY, 5),
        ((8, 8, 1), GREY, 1), ((8, 8, 3), COLOUR, 1), ((5, 8, 8, 3), COLOUR, 5), ((5, 192), COLOUR, 5),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "float16", "int64", ">f4"])
def test_arrays(tmp_path, shape, of, rows, dtype):
    values = np.random.default_rng(2).integers(0, 2 if dtype != "uint8" else 256, shape).astype(dtype)
    np.save(tmp_path / "x.npy", values)
    found, changes = read_pictures(tmp_path / "x.npy", of)
    assert (found.shape, found.dtype, changes) == ((rows, of[0] * 64), torch.float32, [])
    wanted = values.reshape(rows, 8, 8, of[0]).transpose(0, 3, 1, 2) if shape[-1] == 3 else values
    wanted = wanted.reshape(rows, -1).astype(np.float32) / (255 if dtype == "uint8" else 1)
    np.testing.assert_array_equal(found.numpy(), wanted.astype(np.float32))


def test_an_array_is_swapped_only_when_asked(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((8, 8), np.float32))
    assert read_pictures(tmp_path / "x.npy", GREY)[0].min() == 1
    assert read_pictures(tmp_path / "x.npy", GREY, True)[0].max() == 0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros((3, 63)), r"has shape \[3, 63\]; expected \[N, 8, 8\] or \[N, 64\]"),
        (np.zeros((8, 9)), r"has shape \[8, 9\]"),
        (np.zeros(()), r"has shape \[\]"),
        (np.zeros((1, 1, 1, 1, 64)), "has shape"),
        (np.zeros((5, 4, 16)), r"has shape \[5, 4, 16\]"),  # as many pixels, in another form
        (np.zeros((0, 64)), "expected a filled array of numbers"),
        (np.array(["a"] * 64), "holds <U1; expected a filled array of numbers"),
        (np.zeros(64, bool), "holds bool"),
        (np.zeros(64, complex), "holds complex128"),
        (np.zeros(64, [("a", "i4")]), "expected a filled array of numbers"),
        (np.full((2, 64), np.nan), "holds NaN or infinity; expected finite numbers"),
        (np.full(64, np.inf, np.float32), "holds NaN or infinity"),
        (np.full(64, 1e300), "holds NaN or infinity"),
    ],
    ids=lambda value: None,
)
def test_arrays_that_do_not_fit(tmp_path, values, text):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(ValueError, match=text):
        read_pictures(tmp_path / "x.npy", GREY)


class Command:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([Command()] * 64, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy is no \.npy array without objects"):
        read_pictures(tmp_path / "x.npy", GREY)


def npy_header(text):
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"text", b"\x80\x04K\x01.", b"\x93NUMPY\x09\x00" + bytes(50), npy_header(b"{"),
        npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (64,), }\n"),
        npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 1000000), }\n"),
        npy_header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n"),
        npy_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
        npy_header(b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }\n"),
        npy_header(b"__import__('os').system('false')\n"), npy_header(b"[" * 5000),
    ],
)  # fmt: skip
def test_damaged_arrays(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy") as error:
        read_pictures(tmp_path / "x.npy", GREY)
    assert "\n" not in str(error.value)


def test_an_archive_is_no_array(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.zeros(64))
    with pytest.raises(ValueError, match="expected a filled array of numbers"):
        read_pictures(tmp_path / "x.npy", GREY)


# ---------------------------------------------------------------- damage


def test_a_picture_cut_short_anywhere(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 20), dtype=np.uint8)).save(buffer, "png")
    content, path = buffer.getvalue(), tmp_path / "x.png"
    path.write_bytes(content)
    whole, _ = read_pictures(path, GREY)
    found = 0
    for length in range(0, len(content) - 1, 7):
        path.write_bytes(content[:length])
        try:
            assert torch.equal(read_pictures(path, GREY)[0], whole)  # only checksums and the end mark are missing
            assert length > len(content) - 24
        except ValueError as error:
            found += 1
            assert "x.png cannot be read as a picture: " in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
    assert found > 50


def test_damaged_pictures_are_read_or_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path, refused = tmp_path / "x", 0
    for kind in ("png", "gif", "jpeg", "bmp", "tiff", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(VALUES).save(buffer, kind)
        for _ in range(40):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(content), 3):
                content[place] = rng.integers(0, 256)
            path.write_bytes(content)
            try:
                rows, _ = read_pictures(path, GREY)
            except ValueError as error:
                refused += 1
                assert "cannot be read as a picture" in str(error)  # noqa: PT017
            else:
                assert rows.shape == (1, 64)
                assert 0 <= rows.min() <= rows.max() <= 1
    assert refused > 20


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [11_000, 20_000, 2**31 - 1])
def test_a_picture_of_absurd_size_is_refused_unread(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as a picture: "):
        read_pictures(tmp_path / "x.png", GREY)


@pytest.mark.parametrize("name", ["text.png", "text.jpg", "text", "empty.png"])
def test_no_picture(tmp_path, name):
    (tmp_path / name).write_text("" if "empty" in name else "no picture")
    with pytest.raises(ValueError, match=f"{name} cannot be read as a picture: "):
        read_pictures(tmp_path / name, GREY)


@pytest.mark.parametrize("name", ["none.png", "none.npy", ""])
def test_no_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no file "):
        read_pictures(tmp_path / name, GREY)


def test_other_channels_need_arrays(tmp_path):
    with pytest.raises(ValueError, match=r"the network takes 4 channels; expected an \.npy array"):
        read_pictures(saved(tmp_path, Image.new("L", (8, 8))), (4, 8, 8))


def test_missing_pillow_says_what_to_install(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (8, 8)))
    np.save(tmp_path / "x.npy", np.zeros(64))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"pictures need Pillow: run `pip install ffkern\[data\]`"):
        read_pictures(path, GREY)
    assert read_pictures(tmp_path / "x.npy", GREY)[0].shape == (1, 64)
