"""The CUDA driver API on the emulator: host code in C++ (linked as against libcuda) and ctypes."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import ptxsim
import pytest
from ptxsim import In, Out

KERNELS = (Path(__file__).parent / "driver_kernels.cu").read_text()
NOT_INIT, INVALID, OOM, NODEV, BADDEV, BADCTX, NOBIN, BADPTX, BADHANDLE, NOTFOUND = (
    3,
    1,
    2,
    100,
    101,
    201,
    209,
    218,
    400,
    500,
)
ILLEGAL, TIMEOUT, MISALIGNED, FAILED, COOP, DESTROYED = 700, 702, 716, 719, 720, 709
CAP_UNSUPPORTED, CAP_INVALID, CAP_UNJOINED, CAP_IMPLICIT, CLUSTER = 900, 901, 904, 906, 912


def nvcc(src, out, *flags):
    subprocess.check_call(
        [
            os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc") if os.environ.get("CUDA_HOME") else "nvcc",
            *flags,
            str(src),
            "-o",
            str(out),
        ]
    )
    return out


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp("drv")
    (d / "k.cu").write_text(KERNELS)
    (d / "s.cu").write_text('extern "C" __global__ void one(int *y) { *y = __CUDA_ARCH__; }\n')
    nvcc(d / "k.cu", d / "k80.ptx", "-ptx", "-arch=sm_80")
    nvcc(d / "k.cu", d / "k90a.ptx", "-ptx", "-arch=sm_90a")
    nvcc(d / "s.cu", d / "s.cubin", "-cubin", "-arch=sm_80")
    g = [
        "-fatbin",
        "-gencode=arch=compute_80,code=[compute_80,sm_80]",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    for mode in ("none", "speed", "size"):
        nvcc(d / "s.cu", d / (f"s_{mode}.fatbin"), *g, "--compress-mode=" + mode)
    nvcc(d / "s.cu", d / "s_cubin.fatbin", "-fatbin", "-gencode=arch=compute_80,code=sm_80")
    return d


class Gpu:
    """Thin ctypes layer; calls return the error code."""

    def __init__(self, device):
        self.L = ptxsim.driver()
        self.L.ptxsim_reset()
        os.environ["PTXSIM_DEVICE"] = device
        assert self.L.cuInit(0) == 0
        c = ctypes.c_void_p()
        assert self.L.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0) == 0
        assert self.L.cuCtxSetCurrent(c) == 0

    def ok(self, name, *a):
        r = getattr(self.L, name)(*a)
        assert r == 0, (name, r, ptxsim.driver_last_error())

    def get(self, ty, name, *a):
        v = ty()
        self.ok(name, ctypes.byref(v), *a)
        return v

    def load(self, path):
        data = Path(path).read_bytes() + b"\0"
        return self.get(ctypes.c_void_p, "cuModuleLoadData", data)

    def fn(self, mod, name):
        return self.get(ctypes.c_void_p, "cuModuleGetFunction", mod, name.encode())

    def alloc(self, n):
        return self.get(ctypes.c_uint64, "cuMemAlloc_v2", ctypes.c_size_t(n))

    def launch(self, f, grid, block, args, smem=0, stream=None):
        keep = list(args)
        p = (ctypes.c_void_p * max(1, len(keep)))(*[ctypes.addressof(a) for a in keep])

        def t(x):
            return (tuple(x) if isinstance(x, tuple) else (x,)) + (1,) * (3 - (len(x) if isinstance(x, tuple) else 1))

        return self.L.cuLaunchKernel(f, *t(grid), *t(block), smem, stream, p, None)

    def down(self, a, n, dtype="f4"):
        r = np.empty(n, dtype)
        self.ok("cuMemcpyDtoH_v2", r.ctypes.data_as(ctypes.c_void_p), a, ctypes.c_size_t(r.nbytes))
        return r

    def up(self, x):
        a = self.alloc(x.nbytes)
        self.ok("cuMemcpyHtoD_v2", a, x.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(x.nbytes))
        return a


@pytest.fixture
def gpu():
    g = Gpu("sm_80")
    yield g
    g.L.ptxsim_reset()


@pytest.fixture
def gpu90():
    g = Gpu("sm_90")
    yield g
    g.L.ptxsim_reset()


HOST = (Path(__file__).parent / "driver_host.cpp").read_text()


def test_unmodified_host_program(files, tmp_path):
    """A program written against cuda.h, linked with -lcuda, found through LD_LIBRARY_PATH."""
    link = tmp_path / "lib"
    ptxsim.driver_library(link_dir=str(link))
    (tmp_path / "h.cpp").write_text(HOST)
    subprocess.check_call(
        [
            "g++",
            "-std=c++17",
            "-I" + ptxsim.cuda_include(),
            str(tmp_path / "h.cpp"),
            "-L" + str(link),
            "-l:libcuda.so.1",
            "-o",
            str(tmp_path / "h"),
        ]
    )
    r = subprocess.run(
        [str(tmp_path / "h"), str(files / "k90a.ptx")],
        env=dict(os.environ, LD_LIBRARY_PATH=str(link), PTXSIM_DEVICE="sm_90"),
        capture_output=True,
        text=True,
    )
    assert (r.returncode, r.stdout) == (0, "done\n"), r.stderr


def test_low_host_addresses(files, tmp_path):
    """Registered memory of a position-dependent executable lies below the emulator's windows."""
    (tmp_path / "h.cpp").write_text((Path(__file__).parent / "low_addresses.cpp").read_text())
    link = tmp_path / "lib"
    ptxsim.driver_library(link_dir=str(link))
    subprocess.check_call(
        [
            "g++",
            "-no-pie",
            "-fno-pie",
            "-I" + ptxsim.cuda_include(),
            str(tmp_path / "h.cpp"),
            "-L" + str(link),
            "-l:libcuda.so.1",
            "-o",
            str(tmp_path / "h"),
        ]
    )
    r = subprocess.run(
        [str(tmp_path / "h"), str(files / "k80.ptx")],
        env=dict(os.environ, LD_LIBRARY_PATH=str(link), PTXSIM_DEVICE="sm_80"),
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, (r.returncode, r.stdout, r.stderr)


def test_dlopen_by_soname_after_load(gpu):
    assert ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    assert ctypes.CDLL("libcuda.so.1")._handle == gpu.L._handle


@pytest.mark.parametrize(
    ("device", "cc", "optin"),
    [
        ("sm_75", (7, 5), 64),
        ("sm_80", (8, 0), 163),
        ("sm_86", (8, 6), 99),
        ("sm_90", (9, 0), 227),
        ("sm_100", (10, 0), 227),
        ("120", (12, 0), 99),
    ],
)
def test_device_attributes(device, cc, optin):
    g = Gpu(device)

    def at(i):
        return g.get(ctypes.c_int, "cuDeviceGetAttribute", i, 0).value

    assert (at(75), at(76)) == cc
    assert at(97) == optin << 10
    assert at(8) == 48 << 10
    assert at(10) == 32
    assert at(1) == 1024
    assert at(16) > 0
    name = ctypes.create_string_buffer(64)
    g.ok("cuDeviceGetName", name, 64, 0)
    assert b"ptxsim" in name.value
    assert g.get(ctypes.c_size_t, "cuDeviceTotalMem_v2", 0).value > 1 << 30
    assert g.L.cuDeviceGetAttribute(ctypes.byref(ctypes.c_int()), 75, 1) == BADDEV
    g.L.ptxsim_reset()


def test_two_devices(files):
    g = Gpu("sm_80,sm_90")
    assert g.get(ctypes.c_int, "cuDeviceGetCount").value == 2
    m = g.load(files / "k80.ptx")
    f = g.fn(m, "scale")
    c1 = g.get(ctypes.c_void_p, "cuDevicePrimaryCtxRetain", 1)
    g.ok("cuCtxPushCurrent_v2", c1)
    assert g.get(ctypes.c_int, "cuCtxGetDevice").value == 1
    assert g.launch(f, 1, 32, [ctypes.c_uint64(0), ctypes.c_float(1), ctypes.c_int(0)]) == BADHANDLE
    g.ok("cuCtxPopCurrent_v2", None)
    g.ok("cuCtxSetCurrent", g.get(ctypes.c_void_p, "cuCtxGetCurrent"))
    assert g.launch(f, 1, 32, [ctypes.c_uint64(0), ctypes.c_float(1), ctypes.c_int(0)]) == 0
    g.L.ptxsim_reset()


@pytest.mark.parametrize("mode", ["none", "speed", "size"])
def test_fatbin(files, mode):
    for dev, arch in (("sm_80", 800), ("sm_86", 800), ("sm_90", 900), ("sm_120", 900)):
        g = Gpu(dev)
        try:
            f = g.fn(g.load(files / (f"s_{mode}.fatbin")), "one")
            a = g.alloc(4)
            assert g.launch(f, 1, 1, [a]) == 0
            assert g.down(a, 1, "i4")[0] == arch
        finally:
            g.L.ptxsim_reset()


def test_image_errors(files, gpu):
    m = ctypes.c_void_p()

    def load(b):
        return gpu.L.cuModuleLoadData(ctypes.byref(m), b)

    assert load((files / "s.cubin").read_bytes()) == NOBIN
    assert "cubin" in ptxsim.driver_last_error()
    assert load((files / "s_cubin.fatbin").read_bytes()) == NOBIN
    assert load((files / "k90a.ptx").read_bytes()) == BADPTX
    assert "sm_90a does not run on sm_80" in ptxsim.driver_last_error()
    assert load(b"\x01\x02\x03\x04garbage\0") == 200
    assert load(b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f() { what is this; }\0") in (
        0,
        BADPTX,
    )
    g = Gpu("sm_100")
    assert g.L.cuModuleLoadData(ctypes.byref(m), (files / "k90a.ptx").read_bytes()) == BADPTX  # sm_90a only on sm_90
    assert g.L.cuModuleLoadData(ctypes.byref(m), (files / "k80.ptx").read_bytes()) == 0


def test_turing(files, tmp_path):
    """compute_75 runs on sm_75, with fp16 tensor cores; what was compiled for later devices is refused."""
    source = Path(__file__).parent / "instructions.cu"
    nvcc(source, tmp_path / "i75.ptx", "-ptx", "-arch=compute_75")
    g = Gpu("sm_75")
    try:
        f = g.fn(g.load(tmp_path / "i75.ptx"), "mma_f16_k8")
        ones = g.up(np.full((2, 32), 0x3C003C00, "u4"))
        c, d = g.up(np.full((4, 32), 0.5, "f4")), g.alloc(512)
        assert g.launch(f, 1, 32, [ones, ones, c, d]) == 0
        assert (g.down(d, 128) == 8.5).all()
        assert ptxsim.driver_last_stats()[-1]["stats"]["mma_count"] == 1
        assert g.L.cuModuleLoadData(ctypes.byref(ctypes.c_void_p()), (files / "k80.ptx").read_bytes() + b"\0") == BADPTX
        # nothing that a device can refuse by its target alone: PTX for sm_75 with an instruction of sm_80
        text = ".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\ncp.async.wait_all;\nret;\n}\n"
        mod = g.get(ctypes.c_void_p, "cuModuleLoadData", text.encode() + b"\0")
        assert g.launch(g.fn(mod, "k"), 1, 32, []) == 801
        assert "line 6" in ptxsim.driver_last_error()
        assert "needs sm_80" in ptxsim.driver_last_error()
    finally:
        g.L.ptxsim_reset()


def test_launch_arguments_and_extra(files, gpu):
    m = gpu.load(files / "k80.ptx")
    f, o = gpu.fn(m, "bytes"), gpu.alloc(24)
    args = [o, ctypes.c_short(-3), ctypes.c_char(7), ctypes.c_double(1.5), (ctypes.c_float * 2)(2.5, -4)]
    dt = np.dtype([("c", "f8"), ("x", "f4"), ("y", "f4"), ("a", "i4"), ("b", "i4")])
    assert gpu.launch(f, 1, 1, args) == 0
    assert gpu.down(o, 1, dt)[0].tolist() == (1.5, 2.5, -4.0, -3, 7)
    buf = np.zeros(32, "u1")
    buf[:8] = np.frombuffer(bytes(o), "u1")
    buf[8:10] = np.frombuffer(bytes(ctypes.c_short(9)), "u1")
    buf[10], buf[16:24], buf[24:32] = (
        1,
        np.frombuffer(bytes(ctypes.c_double(8)), "u1"),
        np.frombuffer(bytes((ctypes.c_float * 2)(1, 2)), "u1"),
    )
    n = ctypes.c_size_t(32)
    extra = (ctypes.c_void_p * 5)(1, buf.ctypes.data, 2, ctypes.addressof(n), None)
    assert gpu.L.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, None, None, extra) == 0
    assert gpu.down(o, 1, dt)[0].tolist() == (8.0, 1.0, 2.0, 9, 1)
    n.value = 16
    assert gpu.L.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, None, None, extra) == INVALID
    assert gpu.L.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, None, None, None) == INVALID


def test_shared_memory_opt_in(files, gpu):
    f, y = gpu.fn(gpu.load(files / "k80.ptx"), "dyn"), gpu.alloc(4)

    def run(b):
        return gpu.launch(f, 1, 64, [y, ctypes.c_int(b // 4)], smem=b)

    def want(b):
        return np.float32(sum(range(0, b // 4, 97)))

    assert run(48 << 10) == 0
    assert gpu.down(y, 1)[0] == want(48 << 10)
    assert run((48 << 10) + 16) == INVALID
    assert "MAX_DYNAMIC_SHARED_SIZE_BYTES (49152)" in ptxsim.driver_last_error()
    gpu.ok("cuFuncSetAttribute", f, 8, 163 << 10)
    assert gpu.get(ctypes.c_int, "cuFuncGetAttribute", 8, f).value == 163 << 10
    assert run(163 << 10) == 0
    assert gpu.down(y, 1)[0] == want(163 << 10)
    assert gpu.L.cuFuncSetAttribute(f, 8, (163 << 10) + 1) == INVALID
    assert run(164 << 10) == INVALID
    assert "exceed the device's" in ptxsim.driver_last_error()

    def occ(b, s):
        return gpu.get(ctypes.c_int, "cuOccupancyMaxActiveBlocksPerMultiprocessor", f, b, ctypes.c_size_t(s)).value

    assert (
        occ(1024, 0),
        occ(64, 0),
        occ(128, 40 << 10),
        occ(128, 163 << 10),
        occ(128, 164 << 10),
    ) == (2, 32, 4, 1, 0)


def test_launch_limits(files, gpu):
    m = gpu.load(files / "k80.ptx")
    f, y = gpu.fn(m, "bounded"), gpu.alloc(4096)
    assert gpu.launch(f, 1, 64, [y]) == 0
    assert gpu.launch(f, 1, 65, [y]) == INVALID
    assert "launch bounds (64)" in ptxsim.driver_last_error()
    assert gpu.launch(f, 0, 64, [y]) == INVALID
    assert gpu.launch(f, (1, 65536), 64, [y]) == INVALID
    assert gpu.launch(f, 1, 2048, [y]) == INVALID
    assert gpu.get(ctypes.c_int, "cuFuncGetAttribute", 0, f).value == 64
    gpu.ok("cuModuleUnload", m)
    assert gpu.launch(f, 1, 64, [y]) == BADHANDLE
    assert gpu.L.cuModuleUnload(m) == BADHANDLE


def test_defects_become_errors(files, gpu):
    m = gpu.load(files / "k80.ptx")
    y = gpu.alloc(400)
    assert gpu.launch(gpu.fn(m, "scale_bug"), 4, 32, [y, ctypes.c_float(1), ctypes.c_int(100)]) == ILLEGAL
    e = ptxsim.driver_last_error()
    assert "kernel scale_bug, PTX line" in e
    assert "block (3,0,0), thread (4,0,0)" in e
    assert "400 bytes past the start of 'allocation" in e
    assert gpu.launch(gpu.fn(m, "misaligned"), 1, 1, [y]) == MISALIGNED
    assert gpu.launch(gpu.fn(m, "race"), 1, 64, [y]) == FAILED
    assert "without synchronisation" in ptxsim.driver_last_error()
    with ptxsim.driver_options(check_races=0):
        assert gpu.launch(gpu.fn(m, "race"), 1, 64, [y]) == 0
    gpu.ok("cuMemsetD32_v2", y, 0, ctypes.c_size_t(1))
    with ptxsim.driver_options(max_instructions=10000):
        assert gpu.launch(gpu.fn(m, "spin"), 1, 32, [y]) == TIMEOUT
    assert gpu.launch(gpu.fn(m, "scale"), 1, 32, [ctypes.c_uint64(0), ctypes.c_float(1), ctypes.c_int(3)]) == ILLEGAL
    assert "null pointer" in ptxsim.driver_last_error()
    gpu.ok("cuMemFree_v2", y)
    assert gpu.launch(gpu.fn(m, "scale"), 1, 32, [y, ctypes.c_float(1), ctypes.c_int(3)]) == ILLEGAL
    assert "freed 'allocation" in ptxsim.driver_last_error()
    with pytest.raises(ValueError, match="nonsense"):
        ptxsim.driver_set_option("nonsense", 1)


def test_deferred_and_sticky_errors(files, gpu):
    f = gpu.fn(gpu.load(files / "k80.ptx"), "scale")
    args = [ctypes.c_uint64(0), ctypes.c_float(1), ctypes.c_int(3)]
    with ptxsim.driver_options(deferred_errors=1):
        assert gpu.launch(f, 1, 32, args) == 0
        assert gpu.L.cuCtxSynchronize() == ILLEGAL
        assert gpu.L.cuCtxSynchronize() == 0
    with ptxsim.driver_options(sticky_errors=1):
        assert gpu.launch(f, 1, 32, args) == ILLEGAL
        assert gpu.L.cuCtxSynchronize() == ILLEGAL
        assert gpu.L.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(4)) == ILLEGAL
        gpu.ok("cuDevicePrimaryCtxReset_v2", 0)
        gpu.ok("cuCtxSynchronize")


def test_poison_and_never_written(files, gpu):
    f = gpu.fn(gpu.load(files / "k80.ptx"), "scale")
    a = gpu.alloc(40)
    assert np.isnan(gpu.down(a, 10)).all()
    with ptxsim.driver_options(track_uninit=1):
        b = gpu.alloc(40)
        assert gpu.launch(f, 1, 32, [b, ctypes.c_float(1), ctypes.c_int(10)]) == ILLEGAL
        assert "never-written byte 0" in ptxsim.driver_last_error()
        gpu.ok("cuMemsetD32_v2", b, ctypes.c_uint(0x3F800000), ctypes.c_size_t(5))
        assert gpu.launch(f, 1, 32, [b, ctypes.c_float(3), ctypes.c_int(5)]) == 0
        assert gpu.launch(f, 1, 32, [b, ctypes.c_float(1), ctypes.c_int(6)]) == ILLEGAL
        assert gpu.L.ptxsim_unwritten(b.value) == 20
        assert gpu.down(b, 5).tolist() == [3.0] * 5


def test_copies(gpu):
    x = np.arange(100, dtype="f4")
    a, b = gpu.up(x), gpu.alloc(400)
    size = ctypes.c_size_t
    gpu.ok("cuMemcpyDtoD_v2", b, a, size(400))
    gpu.ok(
        "cuMemcpy", ctypes.c_uint64(b.value + 40), ctypes.c_uint64(x.ctypes.data), size(40)
    )  # from pageable host memory
    w = x.copy()
    w[10:20] = x[:10]
    assert (gpu.down(b, 100) == w).all()
    gpu.ok("cuMemsetD8_v2", b, ctypes.c_ubyte(1), size(3))
    gpu.ok("cuMemsetD16_v2", ctypes.c_uint64(b.value + 4), ctypes.c_ushort(0x203), size(2))
    assert gpu.down(b, 8, "u1").tolist()[:3] + gpu.down(b, 8, "u1").tolist()[4:] == [
        1,
        1,
        1,
        3,
        2,
        3,
        2,
    ]
    h = x.ctypes.data_as(ctypes.c_void_p)
    assert gpu.L.cuMemcpyHtoD_v2(b, h, size(404)) == INVALID
    assert gpu.L.cuMemcpyDtoH_v2(h, ctypes.c_uint64(b.value + 396), size(8)) == INVALID
    assert gpu.L.cuMemsetD32_v2(ctypes.c_uint64(b.value + 2), 0, size(1)) == INVALID
    assert gpu.L.cuMemAlloc_v2(ctypes.byref(b), size(0)) == INVALID
    assert gpu.L.cuMemAlloc_v2(ctypes.byref(b), size(1 << 50)) == OOM
    fr, tot = ctypes.c_size_t(), ctypes.c_size_t()
    gpu.ok("cuMemGetInfo_v2", ctypes.byref(fr), ctypes.byref(tot))
    assert tot.value - fr.value == 800
    assert gpu.get(ctypes.c_uint, "cuPointerGetAttribute", 2, a).value == 2
    assert gpu.get(ctypes.c_size_t, "cuPointerGetAttribute", 12, a).value == 400
    assert gpu.L.cuPointerGetAttribute(ctypes.byref(ctypes.c_uint()), 2, ctypes.c_uint64(x.ctypes.data)) == INVALID


def test_registered_host_memory(files, gpu):
    import torch

    f = gpu.fn(gpu.load(files / "k80.ptx"), "scale")

    def run(p, n):
        return gpu.launch(f, (n + 63) // 64, 64, [ctypes.c_uint64(p), ctypes.c_float(2), ctypes.c_int(n)])

    t = torch.arange(64, dtype=torch.float32)
    assert run(t.data_ptr(), 64) == ILLEGAL
    with ptxsim.registered(t=t):
        assert run(t.data_ptr(), 64) == 0
        assert t[63] == 126
        assert run(t.data_ptr(), 65) == ILLEGAL
        assert "256 bytes past the start of 't', whose size is 256" in ptxsim.driver_last_error()
        with ptxsim.registered(t[16:32]):  # a view of it: merged
            assert run(t.data_ptr(), 64) == 0
        assert run(t.data_ptr(), 64) == 0
    assert run(t.data_ptr(), 64) == ILLEGAL
    with ptxsim.registered(x=In(t)):
        assert run(t.data_ptr(), 64) == ILLEGAL
        assert "store to read-only buffer 'x'" in ptxsim.driver_last_error()
    with ptxsim.registered(x=Out(t)):
        assert run(t.data_ptr(), 64) == ILLEGAL
        assert "never-written" in ptxsim.driver_last_error()
        assert gpu.L.ptxsim_unwritten(t.data_ptr()) == 256
    with ptxsim.driver_options(host_access=1):  # every mapped host page
        assert run(t.data_ptr(), 64) == 0
    n = np.ones((4, 8), "f4")
    with ptxsim.registered(n[:, :4]):
        assert run(n.ctypes.data, 28) == 0
        assert run(n.ctypes.data, 29) == ILLEGAL


def test_host_register(files, gpu):
    f = gpu.fn(gpu.load(files / "k80.ptx"), "scale")
    x = np.ones(64, "f4")
    p = x.ctypes.data_as(ctypes.c_void_p)
    gpu.ok("cuMemHostRegister_v2", p, ctypes.c_size_t(256), 0)
    assert gpu.L.cuMemHostRegister_v2(p, ctypes.c_size_t(256), 0) == 712
    assert gpu.launch(f, 1, 64, [ctypes.c_uint64(x.ctypes.data), ctypes.c_float(3), ctypes.c_int(64)]) == 0
    assert (x == 3).all()
    gpu.ok("cuMemHostUnregister", p)
    assert gpu.L.cuMemHostUnregister(p) == 713


def test_statistics_and_printf(files, gpu, capfd):
    m = gpu.load(files / "k80.ptx")
    a = gpu.up(np.ones(256, "f4"))
    ptxsim.driver_clear()
    assert gpu.launch(gpu.fn(m, "scale"), 2, 128, [a, ctypes.c_float(2), ctypes.c_int(256)]) == 0
    assert gpu.launch(gpu.fn(m, "hello"), 1, 1, [ctypes.c_int(42)]) == 0
    s = ptxsim.driver_last_stats()
    assert [x["kernel"] for x in s] == ["scale", "hello"]
    assert s[0]["stats"]["global_load_sectors"] >= 32
    assert s[0]["grid"] == [2, 1, 1]
    assert s[1]["stats"]["printf"] == "value 42\n"
    assert "value 42" in capfd.readouterr().out


def test_other_ptx_at_load_time(files, gpu):
    plain = gpu.load(files / "k80.ptx")
    with ptxsim.driver_on_load(lambda ptx: ptx.replace("mul.f32", "add.f32")):
        other = gpu.load(files / "k80.ptx")
    with ptxsim.driver_on_load(lambda ptx: None):
        same = gpu.load(files / "k80.ptx")
    with ptxsim.driver_on_load(lambda ptx: ptx.replace("mul.f32", "add.f32")):
        with ptxsim.driver_on_load(lambda ptx: None):
            pass
        again = gpu.load(files / "k80.ptx")
    with pytest.raises(ZeroDivisionError), ptxsim.driver_on_load(lambda ptx: 1 // 0):
        gpu.load(files / "k80.ptx")
    for module, want in ((plain, 7), (other, 9), (again, 9), (same, 7), (gpu.load(files / "k80.ptx"), 7)):
        x = gpu.alloc(12)
        gpu.ok("cuMemsetD32_v2", x, ctypes.c_uint(0x3F800000), ctypes.c_size_t(3))
        assert gpu.launch(gpu.fn(module, "scale"), 1, 32, [x, ctypes.c_float(7), ctypes.c_int(3)]) == 0
        assert gpu.down(x, 3).tolist() == [want] * 3  # 1 * (7 * 1), or 1 + (7 + 1)


def test_lines_that_were_executed(files, gpu):
    module, x = gpu.load(files / "k80.ptx"), gpu.alloc(12)
    lines = (files / "k80.ptx").read_text().splitlines()

    def executed(n, **options):
        ptxsim.driver_executed()
        with ptxsim.driver_options(**options):
            assert gpu.launch(gpu.fn(module, "scale"), 1, 32, [x, ctypes.c_float(7), ctypes.c_int(n)]) == 0
        found = ptxsim.driver_executed()
        assert set(found) <= {("sm_80", "scale")}
        return [lines[line - 1] for line in sorted(found.get(("sm_80", "scale"), ()))]

    gpu.ok("cuMemsetD32_v2", x, ctypes.c_uint(0x3F800000), ctypes.c_size_t(3))
    some, none = executed(3, coverage=1), executed(0, coverage=1)
    assert any("st.global" in line for line in some)
    assert not any("st.global" in line for line in none)
    assert any("setp" in line for line in none)
    assert executed(3) == []


def test_module_variables_and_library(files, gpu):
    m1, m2, y = gpu.load(files / "k80.ptx"), gpu.load(files / "k80.ptx"), gpu.alloc(4)
    for m, want in ((m1, 5), (m1, 6), (m2, 5)):
        assert gpu.launch(gpu.fn(m, "bump"), 1, 1, [y]) == 0
        assert gpu.down(y, 1, "i4")[0] == want
    p, n = ctypes.c_uint64(), ctypes.c_size_t()
    gpu.ok("cuModuleGetGlobal_v2", ctypes.byref(p), ctypes.byref(n), m1, b"coef")
    gpu.ok("cuMemsetD32_v2", p, ctypes.c_uint(0x40000000), ctypes.c_size_t(1))
    a = gpu.up(np.ones(4, "f4"))
    assert gpu.launch(gpu.fn(m1, "scale"), 1, 4, [a, ctypes.c_float(1), ctypes.c_int(4)]) == 0
    assert gpu.down(a, 4).tolist() == [2.0] * 4
    assert gpu.L.cuModuleGetGlobal_v2(ctypes.byref(p), None, m1, b"nope") == NOTFOUND
    lib = ctypes.c_void_p()
    data = (files / "k80.ptx").read_bytes() + b"\0"
    gpu.ok("cuLibraryLoadData", ctypes.byref(lib), data, None, None, 0, None, None, 0)
    k = gpu.get(ctypes.c_void_p, "cuLibraryGetKernel", lib, b"bump")
    assert gpu.L.cuLibraryGetKernel(ctypes.byref(ctypes.c_void_p()), lib, b"nope") == NOTFOUND
    f = gpu.get(ctypes.c_void_p, "cuKernelGetFunction", k)
    assert gpu.launch(f, 1, 1, [y]) == 0
    assert gpu.launch(k, 1, 1, [y]) == 0
    assert gpu.down(y, 1, "i4")[0] == 6
    gpu.ok("cuLibraryUnload", lib)
    assert gpu.launch(f, 1, 1, [y]) == BADHANDLE


def _config(grid, block, attrs, stream=None):
    class Attr(ctypes.Structure):
        _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("v", ctypes.c_uint * 16)]

    class Cfg(ctypes.Structure):
        _fields_ = [("d", ctypes.c_uint * 7), ("s", ctypes.c_void_p), ("a", ctypes.POINTER(Attr)), ("n", ctypes.c_uint)]

    arr = (Attr * max(1, len(attrs)))(*[Attr(i, 0, (ctypes.c_uint * 16)(*v)) for i, v in attrs])
    return Cfg((ctypes.c_uint * 7)(grid, 1, 1, block, 1, 1, 0), stream, arr, len(attrs))


def test_cluster_and_cooperative(files, gpu90):
    g = gpu90
    m, y = g.load(files / "k90a.ptx"), g.alloc(256)

    def ex(f, c, args):
        return g.L.cuLaunchKernelEx(
            ctypes.byref(c), f, (ctypes.c_void_p * len(args))(*[ctypes.addressof(a) for a in args]), None
        )

    f = g.fn(m, "ranks")
    assert ex(f, _config(8, 32, [(4, (4, 1, 1))]), [y]) == 0
    assert g.down(y, 8, "i4").tolist() == [4, 20, 36, 52] * 2
    assert ex(f, _config(6, 32, [(4, (4, 1, 1))]), [y]) == INVALID
    assert ex(f, _config(16, 32, [(4, (16, 1, 1))]), [y]) == CLUSTER
    g.ok("cuFuncSetAttribute", f, 14, 1)
    assert ex(f, _config(16, 32, [(4, (16, 1, 1))]), [y]) == 0
    assert g.down(y, 16, "i4")[15] == 15 * 16 + 16
    assert ex(f, _config(8, 32, [(99, (1,))]), [y]) == 801
    bar = g.alloc(4)
    g.ok("cuMemsetD32_v2", bar, 0, ctypes.c_size_t(1))
    f = g.fn(m, "gridsync")
    assert ex(f, _config(8, 1, [(2, (1,))]), [y, bar]) == 0
    assert g.down(y, 16, "i4").tolist()[8:] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        0,
    ]
    assert ex(f, _config(132 * 32 + 1, 1, [(2, (1,))]), [y, bar]) == COOP
    g = Gpu("sm_80")
    assert (
        g.L.cuLaunchKernelEx(
            ctypes.byref(_config(8, 32, [(4, (2, 1, 1))])),
            g.fn(g.load(files / "k80.ptx"), "bounded"),
            (ctypes.c_void_p * 1)(ctypes.addressof(g.alloc(4096))),
            None,
        )
        == CLUSTER
    )


def test_capture_rules(files, gpu):
    f, a = gpu.fn(gpu.load(files / "k80.ptx"), "scale"), gpu.up(np.ones(4, "f4"))
    args = [a, ctypes.c_float(2), ctypes.c_int(4)]

    def mk(flags):
        return gpu.get(ctypes.c_void_p, "cuStreamCreate", flags)

    s, t, blk = mk(1), mk(1), mk(0)
    g = ctypes.c_void_p()

    def begin(st, mode=0):
        return gpu.ok("cuStreamBeginCapture_v2", st, mode)

    def end(st):
        return gpu.L.cuStreamEndCapture(st, ctypes.byref(g))

    assert gpu.L.cuStreamBeginCapture_v2(None, 0) == CAP_UNSUPPORTED
    assert end(s) == 401
    begin(s)
    assert gpu.L.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(4)) == CAP_UNSUPPORTED
    assert gpu.launch(f, 1, 4, args, stream=s) == CAP_INVALID
    assert end(s) == CAP_INVALID
    begin(s, 2)  # relaxed: allowed
    gpu.ok("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(4))
    assert gpu.L.cuStreamSynchronize(s) == CAP_UNSUPPORTED
    assert end(s) == CAP_INVALID
    begin(blk)
    assert gpu.launch(f, 1, 4, args) == CAP_IMPLICIT
    assert end(blk) == CAP_INVALID
    e = gpu.get(ctypes.c_void_p, "cuEventCreate", 0)
    begin(s)
    gpu.ok("cuEventRecord", e, s)
    gpu.ok("cuStreamWaitEvent", t, e, 0)
    assert gpu.launch(f, 1, 4, args, stream=t) == 0
    assert end(s) == CAP_UNJOINED
    begin(s)
    gpu.ok("cuMemsetD32Async", a, ctypes.c_uint(0x3F800000), ctypes.c_size_t(4), s)
    assert gpu.launch(f, 1, 4, args, stream=s) == 0
    assert end(s) == 0
    x = gpu.get(ctypes.c_void_p, "cuGraphInstantiateWithFlags", g, ctypes.c_ulonglong(0))
    for _ in range(3):
        gpu.ok("cuGraphLaunch", x, s)
    assert gpu.down(a, 4).tolist() == [2.0] * 4
    assert len(ptxsim.driver_last_stats()) == 3


def test_tensor_map(gpu90):
    buf = ctypes.create_string_buffer(256)
    p = ctypes.c_void_p((ctypes.addressof(buf) + 63) & ~63)

    def array(t, *v):
        return (t * len(v))(*v)

    def enc(dims=(64, 8), st=(256,), box=(32, 8), el=7, sw=3, base=1 << 40, est=(1, 1), il=0):
        return gpu90.L.cuTensorMapEncodeTiled(
            p,
            el,
            len(dims),
            ctypes.c_void_p(base),
            array(ctypes.c_uint64, *dims),
            array(ctypes.c_uint64, *st),
            array(ctypes.c_uint, *box),
            array(ctypes.c_uint, *est),
            il,
            sw,
            0,
            0,
        )

    assert enc() == 0
    assert enc(dims=(64,), st=(), box=(32,), est=(1,)) == 0
    want = bytes(ptxsim.encode_tensor_map(1 << 40, (64, 8), (256,), (32, 8), "float32", 128))
    assert enc() == 0
    assert ctypes.string_at(p, 128) == want
    for bad in (
        {"base": 8},
        {"st": (250,)},
        {"box": (33, 8)},
        {"box": (64, 8)},
        {"box": (32, 257)},
        {"dims": (0, 8)},
        {"el": 13},
        {"est": (9, 1)},
        {"sw": 4},
    ):
        assert enc(**bad) == INVALID, bad


def test_context_rules():
    api = ptxsim.driver()
    api.ptxsim_reset()
    c = ctypes.c_void_p()
    assert api.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0) == NOT_INIT
    os.environ["PTXSIM_DEVICE"] = "none"
    assert api.cuInit(0) == NODEV
    os.environ["PTXSIM_DEVICE"] = "sm_80"
    assert api.cuInit(0) == 0
    assert api.cuCtxSynchronize() == BADCTX
    assert api.cuDevicePrimaryCtxRetain(ctypes.byref(c), 0) == 0
    assert api.cuCtxSetCurrent(c) == 0
    assert api.cuCtxSynchronize() == 0
    assert api.cuDevicePrimaryCtxRelease_v2(0) == 0
    assert api.cuCtxSynchronize() == DESTROYED
    assert api.cuDevicePrimaryCtxRelease_v2(0) == BADCTX
    api.ptxsim_reset()


def test_options_from_environment(files):
    code = "import ptxsim; ptxsim.driver().cuInit(0); print(*map(ptxsim.driver_get_option, ('order', 'check_races')))"
    r = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(
            os.environ,
            PTXSIM_DEVICE="sm_80",
            PTXSIM_OPTIONS="order=3,check_races=0",
            PYTHONPATH=str(Path(ptxsim.__file__).parents[1]),
        ),
        capture_output=True,
        text=True,
    )
    assert r.stdout.split() == ["3", "0"], r.stderr
