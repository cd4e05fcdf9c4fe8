"""The C interface of libptxsim (src/capi.cpp)."""

from __future__ import annotations

import ctypes
import functools
import threading

from .build import build


class PtxError(RuntimeError):
    """A parse error, an unsupported instruction, or a violation found while a kernel ran."""


class Config(ctypes.Structure):
    """LaunchCfg of src/exec/launch.h."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("dynamic_smem", ctypes.c_uint32),
        ("check_races", ctypes.c_int),
        ("check_uninit", ctypes.c_int),
        ("check_proxy", ctypes.c_int),
        ("allow_exited_cta", ctypes.c_int),
        ("allow_exited_at_barrier", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("resident", ctypes.c_int),
        ("max_smem", ctypes.c_uint32),
        ("max_instructions", ctypes.c_uint64),
        ("order", ctypes.c_int),
        ("strict_warp", ctypes.c_int),
        ("coverage", ctypes.c_bool),
    )


_lock = threading.Lock()


@functools.cache
def _load() -> ctypes.CDLL:
    loaded = ctypes.CDLL(build())
    text, pointer, number = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64
    signatures = {
        "ps_error": (text, []),
        "ps_parse": (pointer, [text]),
        "ps_free_module": (None, [pointer]),
        "ps_add": (number, [pointer, number, text, ctypes.c_int, ctypes.c_int]),
        "ps_del": (None, [number]),
        "ps_unwritten": (number, [number]),
        "ps_info": (text, [pointer]),
        "ps_kernel_info": (text, [pointer, text]),
        "ps_launch": (text, [pointer, text, ctypes.POINTER(Config), text, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def lib() -> ctypes.CDLL:
    with _lock:
        return _load()


def check(result):
    """The result of a call, or the error that it left."""
    if not result:
        raise PtxError(lib().ps_error().decode())
    return result
