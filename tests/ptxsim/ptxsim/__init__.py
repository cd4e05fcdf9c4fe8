"""ptxsim: run NVIDIA PTX on the CPU, with strict checks. See README.md."""

from .build import build, cuda_include, driver_library
from .driver import (
    driver,
    driver_clear,
    driver_executed,
    driver_get_option,
    driver_last_error,
    driver_last_stats,
    driver_on_load,
    driver_options,
    driver_set_option,
    registered,
)
from .library import PtxError
from .memory import DeviceBuffer, In, Out
from .module import Module, demangle
from .tensor_map import TensorMap, encode_tensor_map

__all__ = [
    "DeviceBuffer",
    "In",
    "Module",
    "Out",
    "PtxError",
    "TensorMap",
    "build",
    "cuda_include",
    "demangle",
    "driver",
    "driver_clear",
    "driver_executed",
    "driver_get_option",
    "driver_last_error",
    "driver_last_stats",
    "driver_library",
    "driver_on_load",
    "driver_options",
    "driver_set_option",
    "encode_tensor_map",
    "registered",
]
