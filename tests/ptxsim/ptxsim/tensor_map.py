"""Tensor maps for TMA, in the emulator's own encoding (src/exec/tensor_map.h)."""

from __future__ import annotations

import struct

from .memory import DeviceBuffer

# name: CUtensorMapDataType, bytes
_TYPES = {
    "uint8": (0, 1),
    "uint16": (1, 2),
    "uint32": (2, 4),
    "int32": (3, 4),
    "uint64": (4, 8),
    "int64": (5, 8),
    "float16": (6, 2),
    "float32": (7, 4),
    "float64": (8, 8),
    "bfloat16": (9, 2),
    "float32_ftz": (10, 4),
    "tfloat32": (11, 4),
    "tfloat32_ftz": (12, 4),
}
_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}


class TensorMap(bytes):
    """128 opaque bytes; keeps its DeviceBuffer alive."""


def encode_tensor_map(
    buffer,
    dims,
    strides,
    box,
    dtype,
    swizzle=0,
    element_strides=None,
    oob_nan=False,
    offset=0,
    interleave=0,
) -> TensorMap:
    """What cuTensorMapEncodeTiled does: 128 bytes to pass as the CUtensorMap parameter.

    buffer: a DeviceBuffer or a device address. dims: sizes, innermost first. strides: in bytes, of dims 1 and up.
    box: size of the box in each dim. swizzle: 0 (none), 32, 64 or 128 bytes. dtype: "bfloat16", "tfloat32", ..."""
    code, size = _TYPES[str(dtype).replace("torch.", "")]
    rank = len(dims)
    base = (buffer.addr if isinstance(buffer, DeviceBuffer) else int(getattr(buffer, "value", buffer))) + offset
    steps = list(element_strides or [1] * rank)
    if not 1 <= rank <= 5 or len(box) != rank or len(strides) != rank - 1 or len(steps) != rank:
        raise ValueError("tensor map: rank mismatch")
    if interleave:
        raise ValueError("tensor map: interleaved layouts are not supported")
    if base % 16:
        raise ValueError("tensor map: global address must be 16-byte aligned")
    if any(s % 16 or not 0 < s < 1 << 40 for s in strides):
        raise ValueError("tensor map: strides must be multiples of 16 bytes below 2^40")
    if not (all(0 < d <= 1 << 32 for d in dims) and all(0 < b <= 256 for b in box) and all(1 <= e <= 8 for e in steps)):
        raise ValueError("tensor map: dims, box (<=256) or element strides out of range")
    if box[0] * size % 16:
        raise ValueError("tensor map: inner box must be a multiple of 16 bytes")
    if swizzle not in _SWIZZLES or (swizzle and box[0] * size > swizzle):
        raise ValueError("tensor map: inner box larger than the swizzle span")

    def padded(values, length, fill):
        return [*values, *[fill] * (length - len(values))]

    packed = struct.pack(
        "<8s6B2xQ5Q4Q5H5B",
        *(b"PTXSIMTM", code, rank, _SWIZZLES[swizzle], 0, int(oob_nan), size, base),
        *(padded(dims, 5, 1) + padded(strides, 4, 0) + padded(box, 5, 1) + padded(steps, 5, 1)),
    )
    result = TensorMap(packed.ljust(128, b"\0"))
    result.buffer = buffer
    return result
