"""Arrays on a device of the software driver, for ffkern.arrays: they offer what CuPy's arrays offer the kernels, and
the little of NumPy that the package asks of them. Their memory is the driver's own: the host cannot touch it, every
access out of bounds and every read of what was never written is an error.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from . import DEVICES, build, environment, load
from .driver import current, driver_call

__all__ = ["DLPACK_EXPORTS", "DeviceArray", "DlpackOnly", "arrays_module", "namespace"]


@functools.cache
def arrays_module() -> ModuleType:
    """The module behind ffkern.arrays, on the software driver."""
    ptxsim = load()
    name = "ffkern_emulated_arrays"
    (path,) = build.FOLDER.glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    with environment(FFKERN_CUDA_DRIVER=ptxsim.driver_library(), PTXSIM_DEVICE=",".join(DEVICES)):
        module.is_cuda(DeviceArray(np.zeros(1, np.float32)))  # loads the driver
    return module


class _Memory:
    """An allocation on a device, freed with its last array; `mirror` is the host's copy of it, for transfers."""

    def __init__(self, bytes_: int, device: int) -> None:
        self.device, self.mirror = device, np.zeros(bytes_, np.uint8)
        pointer = ctypes.c_uint64()
        with current(device):
            driver_call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(bytes_, 1)))
        self.address = pointer.value

    def __del__(self) -> None:
        with current(self.device):
            driver_call("cuMemFree_v2", ctypes.c_uint64(self.address))

    def _copy(self, name: str, *args: Any) -> None:
        if self.mirror.size:
            with current(self.device):
                driver_call(name, *args, ctypes.c_size_t(self.mirror.size))

    def download(self) -> None:
        self._copy("cuMemcpyDtoH_v2", ctypes.c_void_p(self.mirror.ctypes.data), ctypes.c_uint64(self.address))

    def upload(self) -> None:
        self._copy("cuMemcpyHtoD_v2", ctypes.c_uint64(self.address), ctypes.c_void_p(self.mirror.ctypes.data))


class DeviceArray:
    """A copy of a NumPy array on a device. `pitch` elements lie between the rows of a matrix that has one.

    `stream`: what the array says it is ready on; `read_only`: what it says of itself.
    """

    def __init__(
        self,
        host: Any,
        device: int = 1,
        *,
        stream: int | None = None,
        read_only: bool = False,
        pitch: int = 0,
        written: bool = True,
    ) -> None:
        host = np.asarray(host)
        shape = (*host.shape[:-1], max(pitch, host.shape[-1])) if pitch else host.shape
        self._memory = _Memory(int(np.prod(shape)) * host.dtype.itemsize, device)
        whole = self._memory.mirror.view(host.dtype).reshape(shape)
        self._view = whole[..., : host.shape[-1]] if pitch else whole
        self.stream, self.read_only = stream, read_only
        if written:
            self._view[...] = host
            self._memory.upload()

    def _slice(self, view: np.ndarray[Any, Any]) -> DeviceArray:
        part = object.__new__(DeviceArray)
        part._memory, part._view, part.stream, part.read_only = self._memory, view, self.stream, self.read_only
        return part

    @property
    def device(self) -> int:
        return self._memory.device

    @property
    def pointer(self) -> int:
        return int(self._memory.address + self._view.ctypes.data - self._memory.mirror.ctypes.data)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self._view.size else 0, self.read_only),
            "strides": None if self._view.flags.c_contiguous else self._view.strides,
            "stream": self.stream,
            "version": 3,
        }

    def __array_namespace__(self) -> Any:
        return namespace(self.device)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.device

    shape = property(lambda self: self._view.shape)
    dtype = property(lambda self: self._view.dtype)
    ndim = property(lambda self: self._view.ndim)

    def __len__(self) -> int:
        return len(self._view)

    def get(self) -> np.ndarray[Any, Any]:
        """A copy on the host, as CuPy calls it."""
        self._memory.download()
        return self._view.copy()

    def __float__(self) -> float:
        return float(self.get())

    def __getitem__(self, index: Any) -> DeviceArray:
        if isinstance(index, DeviceArray):
            index = index.get()
        self._memory.download()
        part = self._view[index]
        if isinstance(part, np.ndarray) and np.shares_memory(part, self._view):
            return self._slice(part)
        return DeviceArray(part, self.device)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._memory.download()
        self._view[index] = value.get() if isinstance(value, DeviceArray) else value
        self._memory.upload()

    @property
    def T(self) -> DeviceArray:  # noqa: N802
        return self._slice(self._view.T)

    def __eq__(self, other: Any) -> Any:
        return self._with("__eq__", other)

    __hash__ = None  # type: ignore[assignment]

    def _with(self, name: str, other: Any) -> DeviceArray:
        return DeviceArray(
            getattr(self.get(), name)(other.get() if isinstance(other, DeviceArray) else other), self.device
        )

    def __sub__(self, other: Any) -> DeviceArray:
        return self._with("__sub__", other)

    def __truediv__(self, other: Any) -> DeviceArray:
        return self._with("__truediv__", other)

    def astype(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.get().astype(dtype), self.device)


# Functions of a device's library that NumPy computes.
COMPUTED = ["zeros", "full", "asarray", "ascontiguousarray", "concat", "concatenate", "take"]
COMPUTED += ["max", "abs", "sum", "argmax", "exp", "mean"]


@functools.cache
def namespace(device: int) -> Any:
    """A library of arrays on this device: what `__array_namespace__` of its arrays returns."""

    class Namespace:
        float16, float32, float64 = np.float16, np.float32, np.float64
        int64, bool = np.int64, np.bool

        @staticmethod
        def empty(shape: Any, dtype: Any = np.float64) -> DeviceArray:
            return DeviceArray(np.zeros(shape, dtype), device, written=False)

    def host(value: Any) -> Any:
        if isinstance(value, DeviceArray):
            return value.get()
        return [host(v) for v in value] if isinstance(value, list | tuple) else value

    def computed(name: str) -> Any:
        def function(*args: Any, **options: Any) -> DeviceArray:
            values = {key: host(value) for key, value in options.items()}
            return DeviceArray(getattr(np, name)(*map(host, args), **values), device)

        return staticmethod(function)

    for name in COMPUTED:
        setattr(Namespace, name, computed(name))
    return Namespace


# ---------------------------------------------------------------- DLPack


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DlManaged(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_DlManaged))
_DlManaged._fields_ = (("tensor", _DlTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

DLPACK_EXPORTS: dict[int, Any] = {}  # tensors that are lent out at the moment, by address


@_Deleter
def _delete(managed: Any) -> None:
    del DLPACK_EXPORTS[ctypes.addressof(managed.contents)]


class DlpackOnly:
    """The same array, seen through DLPack alone; float32 and bfloat16 (as its bits in uint16)."""

    def __init__(self, array: DeviceArray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.streams: list[Any] = []  # that were asked for

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.array.device

    def __array_namespace__(self) -> Any:
        return namespace(self.array.device)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        view = self.array._view
        code = 4 if view.dtype == np.uint16 else 2
        shape = (ctypes.c_int64 * view.ndim)(*view.shape)
        strides = (ctypes.c_int64 * view.ndim)(*(s // view.itemsize for s in view.strides))
        tensor = _DlTensor(
            self.array.pointer - 64, 2, self.array.device, view.ndim, code, 8 * view.itemsize, 1, shape, strides, 64
        )
        managed = _DlManaged(tensor, None, _delete)
        DLPACK_EXPORTS[ctypes.addressof(managed)] = (managed, shape, strides, self.array)
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return capsule(ctypes.addressof(managed), b"dltensor", None)
