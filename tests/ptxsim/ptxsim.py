"""ptxsim: run NVIDIA PTX on the CPU, with strict checks.  See README.md."""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

_here = Path(__file__).resolve().parent
_src = ["parse.cpp", "exec.cpp", "tensor.cpp", "capi.cpp"]
_lib = None
_lock = threading.Lock()


class PtxError(RuntimeError):
    """Parse error, unsupported instruction, or a violation found while a kernel ran."""


def _build_dir():
    """$PTXSIM_BUILD, or build/ptxsim in the repository."""
    return Path(os.environ.get("PTXSIM_BUILD", _here.parents[1] / "build" / "ptxsim"))


def _compile(name, sources, include=(), ldflags=()):
    """Compile and link what changed; returns the library's path."""
    flags = [
        "-std=c++20",
        "-O3",
        "-march=native",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fPIC",
        "-pthread",
    ]
    flags += ["-fvisibility=hidden", "-Wno-misleading-indentation"]
    flags += os.environ.get("PTXSIM_CXXFLAGS", "").split()
    try:  # a cache that travels to another machine must not serve its -march=native
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        cpu = ""

    def read(name):
        return (_here / name).read_bytes()

    headers = (" ".join(flags) + cpu).encode() + read("ptxsim.h") + read("exec.h")
    common = hashlib.sha256(headers).digest()
    key = {f: hashlib.sha256(common + read(f)).hexdigest()[:16] for f in sources}
    d = _build_dir()
    so = d / f"{name}-{hashlib.sha256(''.join(key.values()).encode()).hexdigest()[:16]}.so"
    if so.exists():
        return str(so)
    d.mkdir(parents=True, exist_ok=True)
    objects, jobs = [], []
    for f in sources:
        o = d / f"{f}-{key[f]}.o"
        objects.append(o)
        if not o.exists():
            t = f"{o}.{os.getpid()}.tmp"
            inc = ["-I" + i for i in include]
            jobs.append((subprocess.Popen(["g++", *flags, *inc, "-c", _here / f, "-o", t]), t, o))
    if any(p.wait() for p, _, _ in jobs):
        raise RuntimeError("ptxsim: compilation failed")
    for _, t, o in jobs:
        os.replace(t, o)
    t = f"{so}.{os.getpid()}.tmp"
    subprocess.check_call(["g++", "-shared", "-pthread", *objects, *ldflags, "-o", t])
    os.replace(t, so)
    return str(so)


def build():
    """Compile the emulator if its sources changed; returns the library path."""
    return _compile("libptxsim", _src)


class _Cfg(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("smem", ctypes.c_uint32),
        ("races", ctypes.c_int),
        ("uninit", ctypes.c_int),
        ("proxy", ctypes.c_int),
        ("fence", ctypes.c_int),
        ("exited", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("resident", ctypes.c_int),
        ("maxsmem", ctypes.c_uint32),
        ("maxinstr", ctypes.c_uint64),
        ("order", ctypes.c_int),
        ("strict_warp", ctypes.c_int),
    ]


def lib():
    global _lib
    with _lock:
        if _lib is None:
            L = ctypes.CDLL(build())
            L.ps_error.restype = ctypes.c_char_p
            L.ps_parse.restype = ctypes.c_void_p
            L.ps_parse.argtypes = [ctypes.c_char_p]
            L.ps_free_module.argtypes = [ctypes.c_void_p]
            L.ps_add.restype = ctypes.c_uint64
            L.ps_add.argtypes = [
                ctypes.c_void_p,
                ctypes.c_uint64,
                ctypes.c_char_p,
                ctypes.c_int,
                ctypes.c_int,
            ]
            L.ps_mark.argtypes = [ctypes.c_uint64] * 3
            L.ps_del.argtypes = [ctypes.c_uint64]
            L.ps_unwritten.restype = ctypes.c_uint64
            L.ps_unwritten.argtypes = [ctypes.c_uint64]
            for f in (L.ps_info, L.ps_kernel_info, L.ps_launch):
                f.restype = ctypes.c_char_p
            L.ps_info.argtypes = [ctypes.c_void_p]
            L.ps_kernel_info.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
            L.ps_launch.argtypes = [
                ctypes.c_void_p,
                ctypes.c_char_p,
                ctypes.POINTER(_Cfg),
                ctypes.c_char_p,
                ctypes.c_uint64,
            ]
            _lib = L
    return _lib


def _host(a):
    """(pointer, bytes) of a numpy array or torch CPU tensor."""
    if isinstance(a, np.ndarray):
        if not a.flags.c_contiguous:
            raise ValueError("array is not C-contiguous")
        return a.ctypes.data, a.nbytes
    if hasattr(a, "data_ptr"):
        if a.device.type != "cpu" or not a.is_contiguous():
            raise ValueError("tensor must be a contiguous CPU tensor")
        return a.data_ptr(), a.numel() * a.element_size()
    raise TypeError("not an array: %r" % type(a))


class DeviceBuffer:
    """A numpy array or torch CPU tensor, visible to kernels in place at device address `.addr`.

    readonly: stores are errors.  uninit: the contents count as never written, and reading before
    writing is an error."""

    def __init__(self, array, readonly=False, uninit=False, name="buffer"):
        self.array = array
        p, self.nbytes = _host(array)
        self.addr = lib().ps_add(p, self.nbytes, name.encode(), int(readonly), int(uninit))
        if not self.addr:
            raise PtxError(lib().ps_error().decode())

    def unwritten(self):
        """Bytes never written (uninit=True buffers)."""
        return lib().ps_unwritten(self.addr)

    def __add__(self, n):
        return ctypes.c_uint64(self.addr + n)

    def free(self):
        if self.addr:
            lib().ps_del(self.addr)
            self.addr = 0

    def __del__(self):
        with contextlib.suppress(Exception):
            self.free()


class In:
    """Argument wrapper: read-only array."""

    def __init__(self, a):
        self.a = a


class Out:
    """Argument wrapper: pure output; reading an element before writing it is an error."""

    def __init__(self, a):
        self.a = a


_TM = {
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
):
    """Equivalent of cuTensorMapEncodeTiled: 128 bytes to pass as the CUtensorMap parameter.

    buffer: DeviceBuffer (or a device address).  dims: sizes, innermost first.  strides: BYTE
    strides of dims 1..rank-1.  box: box size per dim.  swizzle: 0 (none), 32, 64 or 128 bytes.
    dtype: numpy/torch-like name, e.g. "bfloat16", "tfloat32"."""
    dt, es = _TM[str(dtype).replace("torch.", "")]
    rank = len(dims)
    base = (buffer.addr if isinstance(buffer, DeviceBuffer) else int(getattr(buffer, "value", buffer))) + offset
    est = list(element_strides or [1] * rank)
    if not 1 <= rank <= 5 or len(box) != rank or len(strides) != rank - 1 or len(est) != rank:
        raise ValueError("tensor map: rank mismatch")
    if interleave:
        raise ValueError("tensor map: interleaved layouts are not supported")
    if base % 16:
        raise ValueError("tensor map: global address must be 16-byte aligned")
    if any(s % 16 or not 0 < s < 1 << 40 for s in strides):
        raise ValueError("tensor map: strides must be multiples of 16 bytes below 2^40")
    if (
        any(not 0 < d <= 1 << 32 for d in dims)
        or any(not 0 < b <= 256 for b in box)
        or any(not 1 <= e <= 8 for e in est)
    ):
        raise ValueError("tensor map: dims, box (<=256) or element strides out of range")
    if box[0] * es % 16:
        raise ValueError("tensor map: inner box must be a multiple of 16 bytes")
    if swizzle not in (0, 32, 64, 128) or (swizzle and box[0] * es > swizzle):
        raise ValueError("tensor map: inner box larger than the swizzle span")
    sw = {0: 0, 32: 1, 64: 2, 128: 3}[swizzle]
    b = struct.pack(
        "<8s6B2xQ5Q4Q5H5B",
        b"PTXSIMTM",
        dt,
        rank,
        sw,
        0,
        int(oob_nan),
        es,
        base,
        *(list(dims) + [1] * (5 - rank)),
        *(list(strides) + [0] * (4 - len(strides))),
        *(list(box) + [1] * (5 - rank)),
        *(est + [1] * (5 - rank)),
    )
    r = TensorMap(b.ljust(128, b"\0"))
    r.buffer = buffer
    return r


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True).stdout.split("\n")
    return [o if o else n for n, o in zip(names, out)]


class Module:
    """Parsed PTX.  `.kernels` lists the entry points."""

    def __init__(self, ptx_text):
        self.ptx = ptx_text
        self._h = lib().ps_parse(ptx_text.encode())
        if not self._h:
            raise PtxError(lib().ps_error().decode())
        info = json.loads(lib().ps_info(self._h))
        self.target = info["target"]
        names = [k["name"] for k in info["kernels"]]
        self.kernels = []
        for k, d in zip(info["kernels"], demangle(names)):
            k["demangled"] = d
            self.kernels.append(k)
        self.vars = {v["name"]: v for v in info["vars"]}

    @classmethod
    def from_cuda(cls, path_or_source, arch="sm_80", flags=(), keep=None):
        """Compile CUDA C++ (a file path, or source text) with nvcc -ptx and parse the result."""
        with tempfile.TemporaryDirectory() as d:
            if "\n" in path_or_source or not os.path.exists(path_or_source):
                src = os.path.join(d, "src.cu")
                Path(src).write_text(path_or_source)
            else:
                src = path_or_source
            out = keep or os.path.join(d, "out.ptx")
            r = subprocess.run(
                ["nvcc", "-ptx", "-arch=" + arch, "-std=c++17", *flags, src, "-o", out],
                capture_output=True,
                text=True,
            )
            if r.returncode:
                raise PtxError("nvcc failed:\n" + r.stderr[-8000:])
            return cls(Path(out).read_text())

    @classmethod
    def from_file(cls, path):
        return cls(Path(path).read_text())

    def find(self, name):
        """Kernel record by mangled name, demangled name, or a unique part of either."""
        ks = self.kernels
        for test in (
            lambda k: k["name"] == name,
            lambda k: k["demangled"] == name,
            lambda k: re.split(r"[<(]", re.sub(r"^void ", "", k["demangled"]))[0] == name,
            lambda k: name in k["demangled"],
            lambda k: name in k["name"],
        ):
            hit = [k for k in ks if test(k)]
            if len(hit) == 1:
                return hit[0]
            if len(hit) > 1:
                raise PtxError("kernel name %r is ambiguous: %s" % (name, [k["demangled"][:120] for k in hit]))
        raise PtxError("no kernel %r; have %s" % (name, [k["demangled"][:120] for k in ks]))

    def info(self, name):
        """Instruction count, static shared memory and unsupported instructions of a kernel."""
        r = lib().ps_kernel_info(self._h, self.find(name)["name"].encode())
        if not r:
            raise PtxError(lib().ps_error().decode())
        return json.loads(r)

    def _pack(self, k, args):
        bufs, outs, seen = [], [], {}
        ps = k["params"]
        if len(args) != len(ps):
            raise PtxError("%s takes %d arguments, got %d" % (k["demangled"][:100], len(ps), len(args)))
        total = max([p["offset"] + p["size"] for p in ps], default=0)
        raw = bytearray(total)
        for i, (a, p) in enumerate(zip(args, ps)):
            ro, un = isinstance(a, In), isinstance(a, Out)
            if ro or un:
                a = a.a
            if (isinstance(a, np.ndarray) and a.ndim) or hasattr(a, "data_ptr"):
                key = _host(a)
                if key[0] in seen and seen[key[0]].nbytes == key[1]:
                    b = seen[key[0]]
                else:
                    b = DeviceBuffer(a, ro, un, "argument %d" % i)
                    seen[key[0]] = b
                    bufs.append(b)
                    if un:
                        outs.append((i, b))
                v = struct.pack("<Q", b.addr)
            elif isinstance(a, DeviceBuffer):
                v = struct.pack("<Q", a.addr)
            elif a is None:
                v = b"\0" * 8
            elif isinstance(a, (bytes, bytearray, ctypes._SimpleCData, ctypes.Structure, ctypes.Array)):
                v = bytes(a)
            elif isinstance(a, np.generic):
                v = a.tobytes()
            elif isinstance(a, (bool, int)):
                v = (int(a) & ((1 << 8 * p["size"]) - 1)).to_bytes(p["size"], "little")
                if p["type"] in (_TY["F32"], _TY["F64"]):
                    v = struct.pack("<f" if p["size"] == 4 else "<d", a)
            elif isinstance(a, float):
                if p["type"] not in (_TY["F32"], _TY["F64"], _TY["B32"], _TY["B64"]):
                    raise PtxError("argument %d is a float but the parameter is not" % i)
                v = struct.pack("<f" if p["size"] == 4 else "<d", a)
            else:
                raise TypeError("argument %d: %r" % (i, type(a)))
            if len(v) != p["size"]:
                raise PtxError("argument %d has %d bytes, parameter has %d" % (i, len(v), p["size"]))
            raw[p["offset"] : p["offset"] + p["size"]] = v
        return bytes(raw), bufs, outs

    def launch(
        self,
        name,
        grid,
        block,
        args,
        smem=0,
        cluster=(1, 1, 1),
        check_races=True,
        check_uninit=True,
        check_proxy=True,
        allow_exited_at_barrier=False,
        allow_exited_cta=False,
        threads=2,
        resident=1,
        max_instructions=4_000_000_000,
        max_smem=227 * 1024,
        order=0,
        strict_warp=True,
    ):
        """Run a kernel; returns statistics.  Raises PtxError on any violation.

        resident: blocks run interleaved on one host thread (-1: the whole grid, for grid-wide
        barriers).  strict_warp: only __syncwarp and barriers order shared-memory accesses within a
        warp; False: shuffles, votes and mma do too.
        order: warp scheduling; 0 ascending, 1 descending, >=2 pseudo-random with that seed."""
        k = self.find(name)
        t3 = lambda x: (
            tuple([x] if isinstance(x, int) else list(x)) + (1,) * (3 - (1 if isinstance(x, int) else len(x)))
        )
        raw, bufs, outs = self._pack(k, args)
        c = _Cfg(
            (ctypes.c_uint32 * 3)(*t3(grid)),
            (ctypes.c_uint32 * 3)(*t3(block)),
            (ctypes.c_uint32 * 3)(*t3(cluster)),
            smem,
            int(check_races),
            int(check_uninit),
            int(check_proxy),
            int(allow_exited_cta),
            int(allow_exited_at_barrier),
            threads,
            resident,
            max_smem,
            max_instructions,
            order,
            int(strict_warp),
        )
        try:
            r = lib().ps_launch(self._h, k["name"].encode(), ctypes.byref(c), raw, len(raw))
            if r is None:
                raise PtxError(lib().ps_error().decode())
            st = json.loads(r)
            if outs:
                st["unwritten_bytes"] = {i: b.unwritten() for i, b in outs}
            return st
        finally:
            for b in bufs:
                b.free()

    def __del__(self):
        try:
            if self._h:
                lib().ps_free_module(self._h)
        except Exception:
            pass


_TY = {
    n: i
    for i, n in enumerate(
        [
            "NONE",
            "PRED",
            "B8",
            "B16",
            "B32",
            "B64",
            "B128",
            "U8",
            "U16",
            "U32",
            "U64",
            "S8",
            "S16",
            "S32",
            "S64",
            "F16",
            "F16X2",
            "BF16",
            "BF16X2",
            "F32",
            "F32X2",
            "F64",
        ]
    )
}


# ---------------------------------------------------- software driver (libptxsim_cuda.so)
def cuda_include():
    """Directory of cuda.h: $CUDA_HOME, $CUDA_PATH, where nvcc looks, or a pip package."""
    c = [os.path.join(os.environ[v], "include") for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    n = shutil.which("nvcc")
    if n:
        c.append(os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(n))), "include"))
        r = subprocess.run([n, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        c += [os.path.normpath(x) for x in re.findall(r'"?-I([^" ]+)"?', r)]
    c += [
        os.path.join(p, q)
        for p in sys.path
        for q in (
            "triton/backends/nvidia/include",
            "nvidia/cu13/include",
            "nvidia/cuda_runtime/include",
        )
    ]
    for d in c:
        if os.path.exists(os.path.join(d, "cuda.h")):
            return d
    raise RuntimeError("ptxsim: cuda.h not found; set CUDA_HOME")


def driver_library(link_dir=None):
    """Compile libptxsim_cuda.so, the CUDA driver API on the emulator; returns its path.

    link_dir: also create link_dir/libcuda.so.1, for LD_LIBRARY_PATH."""
    so = _compile(
        "libptxsim_cuda",
        [*_src, "driver.cpp"],
        [cuda_include()],
        ["-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic", "-ldl"],
    )
    if link_dir:
        os.makedirs(link_dir, exist_ok=True)
        l = os.path.join(link_dir, "libcuda.so.1")
        if os.path.lexists(l):
            os.unlink(l)
        os.symlink(so, l)
    return so


_drv = None


def driver():
    """The loaded driver library (ctypes); from then on dlopen("libcuda.so.1") finds it too."""
    global _drv
    if _drv is None:
        so = driver_library()
        with _lock:
            if _drv is None:
                L = ctypes.CDLL(so)
                L.ptxsim_last_error.restype = L.ptxsim_last_stats.restype = ctypes.c_char_p
                L.ptxsim_register_named.argtypes = [
                    ctypes.c_void_p,
                    ctypes.c_size_t,
                    ctypes.c_uint,
                    ctypes.c_char_p,
                ]
                L.ptxsim_unregister.argtypes = [ctypes.c_void_p]
                L.ptxsim_unwritten.argtypes = [ctypes.c_void_p]
                L.ptxsim_unwritten.restype = ctypes.c_longlong
                L.ptxsim_set_option.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
                L.ptxsim_get_option.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_longlong)]
                _drv = L
    return _drv


def driver_last_error():
    """Message of the last failed call; for a launch with kernel, PTX line, block and thread."""
    return driver().ptxsim_last_error().decode()


def driver_last_stats():
    """Records of the last launches through the driver (option keep_stats), oldest first."""
    return json.loads(driver().ptxsim_last_stats().decode())["launches"]


def driver_clear():
    """Forget the recorded launches, the last error and a pending error."""
    driver().ptxsim_clear_stats()
    driver().ptxsim_clear_error()


def driver_set_option(name, value):
    if driver().ptxsim_set_option(name.encode(), int(value)):
        raise ValueError("unknown driver option %r" % name)


def driver_get_option(name):
    v = ctypes.c_longlong()
    if driver().ptxsim_get_option(name.encode(), ctypes.byref(v)):
        raise ValueError("unknown driver option %r" % name)
    return v.value


@contextlib.contextmanager
def driver_options(**kw):
    """Temporarily set driver options."""
    old = {k: driver_get_option(k) for k in kw}
    try:
        for k, v in kw.items():
            driver_set_option(k, v)
        yield
    finally:
        for k, v in old.items():
            driver_set_option(k, v)


def _span(a):
    """(first byte, bytes) touched by a numpy array or torch CPU tensor, strided views included."""
    if isinstance(a, np.ndarray):
        lo, hi = np.lib.array_utils.byte_bounds(a) if hasattr(np.lib, "array_utils") else np.byte_bounds(a)
        return lo, hi - lo
    if a.numel() == 0:
        return a.data_ptr(), 0
    return a.data_ptr(), (sum((n - 1) * s for n, s in zip(a.shape, a.stride())) + 1) * a.element_size()


class registered:
    """Context manager: arrays / CPU tensors become addressable by kernels, at their own addresses.

    with registered(x, Out(y)): ...   In(a) read-only, Out(a) write-before-read; keyword arguments
    name buffers in messages."""

    def __init__(self, *arrays, **named):
        self.items = [(a, "argument %d" % i) for i, a in enumerate(arrays)] + [(a, n) for n, a in named.items()]

    def __enter__(self):
        self.done = []
        for a, n in self.items:
            fl = 1 if isinstance(a, In) else 2 if isinstance(a, Out) else 0
            a = a.a if fl else a
            p, k = _span(a)
            if not k:
                continue
            if driver().ptxsim_register_named(p, k, fl, n.encode()):
                e = driver_last_error()
                self.__exit__()
                raise PtxError(e)
            self.done.append(p)
        return self

    def __exit__(self, *_):
        for p in self.done:
            driver().ptxsim_unregister(p)
        self.done = []
