"""Calls of the software driver that tests make themselves, as a program would make them of CUDA's."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

from . import load


def driver_call(name: str, *args: Any) -> None:
    ptxsim = load()
    result = getattr(ptxsim.driver(), name)(*args)
    assert result == 0, f"{name} failed with {result}: {ptxsim.driver_last_error()}"


@contextlib.contextmanager
def current(device: int) -> Iterator[None]:
    context = ctypes.c_void_p()
    driver_call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    driver_call("cuCtxPushCurrent_v2", context)
    try:
        yield
    finally:
        driver_call("cuCtxPopCurrent_v2", ctypes.byref(context))


def new_stream(device: int) -> int:
    stream = ctypes.c_void_p()
    with current(device):
        driver_call("cuStreamCreate", ctypes.byref(stream), 1)  # does not wait for the default stream
    assert stream.value is not None
    return stream.value
