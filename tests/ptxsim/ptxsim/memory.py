"""Host arrays as device memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools

import numpy as np

from .library import check, lib


def is_array(value) -> bool:
    return (isinstance(value, np.ndarray) and value.ndim > 0) or hasattr(value, "data_ptr")


def contiguous(array) -> tuple[int, int]:
    """(pointer, bytes) of a numpy array or torch CPU tensor."""
    if isinstance(array, np.ndarray):
        if not array.flags.c_contiguous:
            raise ValueError("array is not C-contiguous")
        return array.ctypes.data, array.nbytes
    if hasattr(array, "data_ptr"):
        if array.device.type != "cpu" or not array.is_contiguous():
            raise ValueError("tensor must be a contiguous CPU tensor")
        return array.data_ptr(), array.numel() * array.element_size()
    raise TypeError(f"not an array: {type(array)!r}")


def span(array) -> tuple[int, int]:
    """(first byte, bytes) that a numpy array or torch CPU tensor touches, strided views included."""
    if isinstance(array, np.ndarray):
        bounds = np.lib.array_utils.byte_bounds if hasattr(np.lib, "array_utils") else np.byte_bounds
        first, end = bounds(array)
        return first, end - first
    if array.numel() == 0:
        return array.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(array.shape, array.stride(), strict=True))
    return array.data_ptr(), (last + 1) * array.element_size()


class DeviceBuffer:
    """An array that kernels see, in place, at device address `.addr`; `buffer + bytes` is a pointer into it.

    readonly: stores are errors. uninit: the contents count as never written, and reading them before that is an
    error."""

    def __init__(self, array, readonly: bool = False, uninit: bool = False, name: str = "buffer"):
        self.array, self.addr = array, 0
        pointer, self.nbytes = contiguous(array)
        self.addr = check(lib().ps_add(pointer, self.nbytes, name.encode(), int(readonly), int(uninit)))

    def unwritten(self) -> int:
        """Bytes of an `uninit` buffer that were never written."""
        return lib().ps_unwritten(self.addr)

    def __add__(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64(self.addr + offset)

    def free(self) -> None:
        if self.addr:
            lib().ps_del(self.addr)
            self.addr = 0

    def __del__(self):
        with contextlib.suppress(Exception):
            self.free()


class In:
    """An argument that the kernel must not write."""

    def __init__(self, array):
        self.array = array


class Out:
    """An argument that the kernel only writes: reading an element before that is an error."""

    def __init__(self, array):
        self.array = array


@functools.singledispatch
def unwrapped(argument) -> tuple[object, bool, bool]:
    """(array, read-only, never written)."""
    return argument, False, False


unwrapped.register(In, lambda argument: (argument.array, True, False))
unwrapped.register(Out, lambda argument: (argument.array, False, True))
