"""Negative tests: each defect must be reported, its corrected twin must pass."""

from pathlib import Path

import numpy as np
import pytest
from ptxsim import In, Module, Out, PtxError

SRC = (Path(__file__).parent / "checks.cu").read_text()


@pytest.fixture(scope="module")
def m():
    return Module.from_cuda(SRC)


X = np.random.randn(256).astype("f4")


def err(m, pat, *a, **k):
    with pytest.raises(PtxError, match=pat) as e:
        m.launch(*a, **k)
    s = str(e.value)
    assert "PTX line" in s
    assert "block (" in s
    return s


def test_missing_syncthreads(m):
    o = np.zeros(256, "f4")
    m.launch("rev", 1, 256, [X, Out(o), 1])
    assert np.array_equal(o, X[::-1])
    for order in (0, 1, 2, 3):
        err(m, "race|never-written", "rev", 1, 256, [X, o, 0], order=order)
    err(m, "race", "rev", 1, 256, [X, o, 0], check_uninit=False)
    m.launch("rev", 1, 256, [X, o, 0], check_races=False)


def test_war_race(m):
    o = np.zeros(256, "f4")
    m.launch("war", 1, 256, [X, Out(o), 1])
    assert np.allclose(o, 3 * np.roll(X, -32) + 3, atol=1e-5)
    for order in (0, 1, 2):
        err(m, "race", "war", 1, 256, [X, o, 0], order=order)


def test_missing_syncwarp(m):
    o = np.zeros(64, "f4")
    m.launch("warpsync", 1, 64, [X, Out(o), 1])
    err(m, "race.*read after write", "warpsync", 1, 64, [X, o, 0])


def test_same_value_and_shuffle_order(m):
    o = np.zeros(32, "f4")
    m.launch("samev", 1, 32, [X, o, 0])
    err(m, "race.*write after write", "samev", 1, 32, [X, o, 1])
    err(m, "race.*write after read", "shflord", 1, 32, [X, o])
    m.launch("shflord", 1, 32, [X, o], strict_warp=False)
    assert np.allclose(o, X[0] + 1)


def test_byte_granularity(m):
    x = np.arange(256, dtype="u1")
    o = np.zeros(256, "u1")
    m.launch("bytes_", 1, 256, [x, Out(o), 0])
    assert np.array_equal(x, o)
    err(m, "race|never-written", "bytes_", 1, 256, [x, o, 1])


def test_global_bounds(m):
    o = np.zeros(32, "f4")
    m.launch("oob", 1, 32, [X, o, 224])
    assert "thread (31,0,0)" in err(m, "out-of-bounds global load", "oob", 1, 32, [X, o, 225])
    err(m, "out-of-bounds global load", "oob", 1, 32, [X, o, -1])
    err(m, "out-of-bounds global store", "oobst", 1, 32, [o, 1])
    err(m, "misaligned", "mis", 1, 32, [X, o, 1])
    m.launch("mis", 1, 32, [X, o, 4])
    err(m, "read-only", "oobst", 1, 32, [In(o), 0])
    err(m, "invalid generic|out-of-bounds", "nullp", 1, 32, [None])


def test_shared_bounds(m):
    o = np.zeros(32, "f4")
    m.launch("shoob", 1, 32, [o, 32], smem=256)
    err(m, "out-of-bounds shared", "shoob", 1, 32, [o, 64], smem=256)
    err(m, "out-of-bounds shared", "shoob", 1, 32, [o, -1], smem=256)


def test_uninitialised(m):
    o = np.zeros(64, "f4")
    m.launch("uninit", 1, 64, [o, 64])
    err(m, "never-written shared", "uninit", 1, 64, [o, 63])
    m.launch("uninit", 1, 64, [o, 63], check_uninit=False)
    m.launch("readout", 1, 32, [Out(o), 1])
    err(m, "never-written byte", "readout", 1, 32, [Out(o), 0])
    st = m.launch("readout", 1, 32, [Out(o), 1])
    assert st["unwritten_bytes"] == {0: 128}


def test_cp_async_wait(m):
    o = np.zeros(32, "f4")
    m.launch("cpw", 1, 32, [X[:128].copy(), Out(o), 1, 1])
    assert np.array_equal(o, X[(np.arange(32) * 4 + 17) & 127])
    err(m, "asynchronous copy", "cpw", 1, 32, [X[:128].copy(), o, 0, 1])
    err(m, "race", "cpw", 1, 32, [X[:128].copy(), o, 1, 0])
    m.launch("cpw", 1, 32, [X[:128].copy(), o, 0, 1], check_races=False)
    assert np.isnan(o).all()  # poison


def test_barriers(m):
    o = np.zeros(128, "f4")
    m.launch("bardiv", 1, 128, [o, 128])
    err(m, "deadlock or barrier divergence", "bardiv", 1, 128, [o, 64])
    err(m, "barrier divergence|deadlock|exited", "bardiv", 1, 128, [o, 80])
    err(m, "deadlock or barrier divergence", "barexit", 1, 128, [o, 64])
    m.launch("barexit", 1, 128, [o, 64], allow_exited_at_barrier=True)


def test_shuffle_masks(m):
    x = np.arange(32, dtype="i4")
    o = np.zeros(32, "i4")
    m.launch("shflmask", 1, 32, [x, o, 32])
    err(m, "exited lanes|deadlock", "shflmask", 1, 32, [x, o, 16])
    m.launch("shflsrc", 1, 32, [x, o, 8])
    err(m, "does not take part", "shflsrc", 1, 32, [x, o, 16])


def test_hang_trap_assert(m):
    err(
        m,
        "deadlock|instruction limit",
        "spin",
        1,
        32,
        [np.zeros(1, "i4")],
        max_instructions=10_000_000,
    )
    err(m, "trap", "trapk", 1, 32, [3])
    m.launch("trapk", 1, 32, [32])
    assert "threadIdx.x != n" in err(m, "assertion failed", "asrt", 1, 32, [5])


def test_named_barrier_race(m):
    o = np.zeros(128, "f4")
    m.launch("namedrace", 1, 128, [X[:128].copy(), o, 1])
    err(m, "race|never-written", "namedrace", 1, 128, [X[:128].copy(), o, 0])


def test_shared_atomics(m):
    o = np.zeros(64, "i4")
    m.launch("atomsh", 1, 64, [o, 0])
    assert (o == 64).all()
    err(m, "race", "atomsh", 1, 64, [o, 1])
    x = np.random.default_rng(0).integers(0, 100, 256).astype("i4")
    m.launch("atomgen", 1, 256, [o, x])
    assert np.array_equal(o[:8], np.bincount(x & 7, minlength=8))


def ptx(body):
    return Module(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() " + body)


def test_unknown_instruction():
    unknown = ptx("{ .reg .b32 %r<2>;\n frobnicate.b32 %r1, %r1;\n ret; }")
    with pytest.raises(PtxError, match=r"line 5.*frobnicate"):
        unknown.launch("k", 1, 32, [])
    modifier = ptx("{ .reg .f32 %f<2>;\n add.weird.f32 %f1, %f1, %f1;\n ret; }")
    with pytest.raises(PtxError, match="unknown modifier"):
        modifier.launch("k", 1, 32, [])


STRIDED = """
extern "C" __global__ void k(float* o, int s) {
  __shared__ float x[1024];
  int t = threadIdx.x;
  for (int i = t; i < 1024; i += 32) x[i] = i;
  __syncthreads();
  o[t] = x[t * s & 1023];
}
"""


def test_bank_conflict_stats():
    m = Module.from_cuda(STRIDED)
    o = np.zeros(32, "f4")
    for s, w in ((1, 1), (2, 2), (32, 32), (33, 1), (0, 1)):
        assert m.launch("k", 1, 32, [o, s])["shared_load_wavefronts"] == w
