"""Whether a value read from a file has the form of one that is known to be right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["like"]


def like(name: str, given: Any, known: Any) -> None:
    """Refuses what differs from `known` in more than its numbers.

    Dictionaries need the same keys, lists the same length, tensors the same dtype and shape, in memory of their own
    size. A single real number may be a float or a tensor.

    Raises:
        ValueError: it differs; the text says where.
    """
    if isinstance(known, dict):
        fits = isinstance(given, dict) and given.keys() == known.keys()
    elif isinstance(known, list | tuple):
        fits = isinstance(given, list | tuple) and len(given) == len(known)
    elif _real(known):
        fits = _real(given) or type(given) is int
    elif isinstance(known, Tensor):
        fits = isinstance(given, Tensor) and (given.dtype, given.shape) == (known.dtype, known.shape)
        fits = fits and given.is_contiguous()  # else one number could pose as any number of them
    else:
        fits = type(given) is type(known)
    if not fits:
        raise ValueError(f"{name} is {_words(given)}; expected {_words(known)}")
    if isinstance(known, dict):
        for key, value in known.items():
            like(f"{name}.{key}", given[key], value)
    elif isinstance(known, list | tuple):
        for i, value in enumerate(known):
            like(f"{name}[{i}]", given[i], value)


def _real(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, Tensor) and not value.dim() and value.is_floating_point())


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple):
        return f"{len(value)} values"
    return f"a {type(value).__name__}" if value is not None else "nothing"
