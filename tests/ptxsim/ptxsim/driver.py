"""The software driver libptxsim_cuda.so, and its control functions (src/driver/control.cpp)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import threading

from .build import driver_library
from .library import PtxError
from .memory import span, unwrapped

_lock = threading.Lock()


@functools.cache
def _load() -> ctypes.CDLL:
    loaded = ctypes.CDLL(driver_library())
    loaded.ptxsim_last_error.restype = loaded.ptxsim_last_stats.restype = ctypes.c_char_p
    loaded.ptxsim_executed.restype = ctypes.c_char_p
    loaded.ptxsim_unwritten.restype = ctypes.c_longlong
    text, pointer = ctypes.c_char_p, ctypes.c_void_p
    loaded.ptxsim_register_named.argtypes = [pointer, ctypes.c_size_t, ctypes.c_uint, text]
    loaded.ptxsim_unregister.argtypes = loaded.ptxsim_unwritten.argtypes = [pointer]
    loaded.ptxsim_on_load.argtypes = [pointer]
    loaded.ptxsim_set_option.argtypes = [text, ctypes.c_longlong]
    loaded.ptxsim_get_option.argtypes = [text, ctypes.POINTER(ctypes.c_longlong)]
    return loaded


def driver() -> ctypes.CDLL:
    """The loaded driver; from then on dlopen("libcuda.so.1") finds it too."""
    with _lock:
        return _load()


def driver_last_error() -> str:
    """Message of the last call that failed; of a launch with kernel, PTX line, block and thread."""
    return driver().ptxsim_last_error().decode()


def driver_last_stats() -> list[dict]:
    """Records of the last launches (as many as option keep_stats says), oldest first."""
    return json.loads(driver().ptxsim_last_stats().decode())["launches"]


def driver_clear() -> None:
    """Forgets the recorded launches, the last error and a pending error."""
    driver().ptxsim_clear_stats()
    driver().ptxsim_clear_error()


def driver_set_option(name: str, value: int) -> None:
    if driver().ptxsim_set_option(name.encode(), int(value)):
        raise ValueError(f"unknown driver option {name!r}")


def driver_get_option(name: str) -> int:
    value = ctypes.c_longlong()
    if driver().ptxsim_get_option(name.encode(), ctypes.byref(value)):
        raise ValueError(f"unknown driver option {name!r}")
    return value.value


@contextlib.contextmanager
def driver_options(**options: int):
    """Sets driver options for a while."""
    before = {name: driver_get_option(name) for name in options}
    try:
        for name, value in options.items():
            driver_set_option(name, value)
        yield
    finally:
        for name, value in before.items():
            driver_set_option(name, value)


def driver_executed():
    """PTX lines that were executed since the last call while the option coverage was set, by (target, kernel)."""
    rows = (line.split() for line in driver().ptxsim_executed().decode().splitlines())
    found: dict[tuple[str, str], set[int]] = {}
    for target, kernel, *lines in rows:
        found.setdefault((target, kernel), set()).update(map(int, lines))
    return found


_Hook = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
_hooks: list = []  # the last one is asked


@contextlib.contextmanager
def driver_on_load(instead):
    """For a while modules are loaded from other PTX than they hold: instead(ptx) returns it, or None. What it raises is
    raised at the end."""
    kept, errors = [], []  # the driver reads the text after the call

    def call(ptx):
        try:
            text = instead(ptx.decode())
        except Exception as error:  # which cannot pass through the driver
            errors.append(error)
            return None
        if text is None:
            return None
        kept.append(ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(kept[-1])

    _hooks.append(_Hook(call))
    driver().ptxsim_on_load(_hooks[-1])
    try:
        yield
    finally:
        _hooks.pop()
        driver().ptxsim_on_load(_hooks[-1] if _hooks else None)
    if errors:
        raise errors[0]


class registered:  # noqa: N801
    """Context manager: arrays and CPU tensors become addressable by kernels, at their own addresses.

    In(a) is read-only, Out(a) never written; keywords name buffers in messages."""

    def __init__(self, *arrays, **named):
        self.items = {**{f"argument {i}": array for i, array in enumerate(arrays)}, **named}

    def __enter__(self):
        self.done = []
        for name, argument in self.items.items():
            array, readonly, unwritten = unwrapped(argument)
            pointer, size = span(array)
            if not size:
                continue
            if driver().ptxsim_register_named(pointer, size, readonly | unwritten << 1, name.encode()):
                message = driver_last_error()
                self.__exit__()
                raise PtxError(message)
            self.done.append(pointer)
        return self

    def __exit__(self, *_):
        for pointer in self.done:
            driver().ptxsim_unregister(pointer)
        self.done = []
