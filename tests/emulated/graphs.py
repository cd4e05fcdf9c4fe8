"""Graphs of launches on the software driver."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from . import DEVICES
from .driver import current, driver_call, new_stream


class Graphs:
    """Stream capture through the driver API, as torch's CUDA graphs do it."""

    def __init__(self, device: str = "sm_80") -> None:
        self.device = DEVICES.index(device)

    def stream(self) -> int:
        return new_stream(self.device)

    @contextlib.contextmanager
    def capture(self, stream: int, graph: list[int]) -> Iterator[None]:
        with current(self.device):
            driver_call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), 0)
        yield
        captured, executable = ctypes.c_void_p(), ctypes.c_void_p()
        with current(self.device):
            driver_call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(captured))
            driver_call("cuGraphInstantiateWithFlags", ctypes.byref(executable), captured, ctypes.c_ulonglong(0))
        assert executable.value
        graph.append(executable.value)

    def replay(self, graph: int, stream: int) -> None:
        with current(self.device):
            driver_call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))
            driver_call("cuStreamSynchronize", ctypes.c_void_p(stream))
