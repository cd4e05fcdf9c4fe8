"""Nested dictionaries and lists of tensors: compared bit for bit, and spoilt in every place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Path = tuple[Any, ...]


def assert_same(a: Any, b: Any, where: str = "result") -> None:
    """Equal in types, keys, lengths, dtypes and bits; "seconds" aside."""
    assert type(a) is type(b), (where, a, b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{where}[{i}]")
    else:
        assert a == b, where


def same(a: Any, b: Any) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where there is a value: keys and indices from the outside in."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def changed(value: Any, path: Path, other: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return other
    inner = changed(value[path[0]], path[1:], other)
    if isinstance(value, dict):
        return {**value, path[0]: inner}
    return type(value)([*value[: path[0]], inner, *value[path[0] + 1 :]])


def without(value: Any, path: Path) -> Any:
    """A copy that lacks one place."""
    if len(path) > 1:
        return changed(value, path[:-1], without(at(value, path[:-1]), path[-1:]))
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k != path[0]}
    return type(value)([*value[: path[0]], *value[path[0] + 1 :]])


def foreign(value: Any) -> Iterator[Any]:
    """What cannot stand in place of a value: other types, and tensors of other shapes."""
    single = isinstance(value, torch.Tensor) and not value.dim()
    for other in (None, "text", 2, torch.zeros(2, 3)):
        if type(value) is not type(other) and not (
            (single or isinstance(value, int | float)) and isinstance(other, int)
        ):
            yield other
    if isinstance(value, torch.Tensor):
        yield torch.zeros(2, 3)
        if value.dim():
            yield value[:1].clone() if len(value) > 1 else torch.cat((value, value))
