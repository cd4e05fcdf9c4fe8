"""What a site is called so that it stays the same when lines above it come and go: by the text of its lines."""

from __future__ import annotations

import functools

from emulated import toolkit

from mutation.ptx import Site

__all__ = ["identity", "text_of"]


@functools.cache
def _lines(file: str) -> list[str]:
    folder = toolkit.ROOT / "csrc"
    found = [path for part in ("cuda", "core") for path in (folder / part).glob(file)]
    return found[0].read_text().splitlines() if found else []


def text_of(place: str) -> str:
    """The source line "file:line", without its comment; "" if the file is not one of ours."""
    if not place:
        return ""
    file, line = place.rsplit(":", 1)
    lines = _lines(file)
    return lines[int(line) - 1].split("//")[0].strip() if lines else ""


def identity(family: str, site: Site) -> tuple[str, str, str, str, str]:
    """Family, kind, file, text of the line and text of the line that it was inlined by."""
    return family, site.kind, site.file, text_of(f"{site.file}:{site.line}"), text_of(site.inlined)
