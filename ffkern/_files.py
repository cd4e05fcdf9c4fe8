"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file so that at any moment `path` holds either its old content or all of the new one.

    Raises:
        OSError: no space, no permission, no folder. The old file is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    # One name an owner: what a killed process left there is overwritten by the next.
    aside = path.with_name(path.name + ".part")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:  # Ctrl-C too
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # the new name is on the disk only when its folder is; some file systems cannot say so
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
