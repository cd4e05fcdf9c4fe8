"""Graphs of launches on the software driver."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import ModuleType

from . import DEVICES


class Graphs:
    """Stream capture through the driver API, as torch's CUDA graphs do it."""

    def __init__(self, driver: ModuleType) -> None:
        self.lib = driver.driver()
        context = ctypes.c_void_p()
        self.check(self.lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), DEVICES.index("sm_80")))
        self.check(self.lib.cuCtxSetCurrent(context))

    def check(self, result: int) -> None:
        assert result == 0, result

    def stream(self) -> int:
        stream = ctypes.c_void_p()
        self.check(self.lib.cuStreamCreate(ctypes.byref(stream), 0))
        assert stream.value
        return stream.value

    @contextlib.contextmanager
    def capture(self, stream: int, graph: list[int]) -> Iterator[None]:
        self.check(self.lib.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), 0))
        yield
        captured, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self.check(self.lib.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(captured)))
        self.check(self.lib.cuGraphInstantiateWithFlags(ctypes.byref(executable), captured, ctypes.c_ulonglong(0)))
        assert executable.value
        graph.append(executable.value)

    def replay(self, graph: int, stream: int) -> None:
        self.check(self.lib.cuGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(stream)))
        self.check(self.lib.cuStreamSynchronize(ctypes.c_void_p(stream)))
