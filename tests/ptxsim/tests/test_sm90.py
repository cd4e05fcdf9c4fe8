"""sm_90a: wgmma, TMA, mbarrier, clusters; with negative twins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ptxsim import DeviceBuffer, In, Module, Out, PtxError, encode_tensor_map

SRC = (Path(__file__).parent / "sm90.cu").read_text()


@pytest.fixture(scope="module")
def m():
    return Module.from_cuda(SRC, arch="sm_90a")


def km(m, name, depth, swb):
    torch.manual_seed(0)
    left, right, o = torch.randn(64, depth).bfloat16(), torch.randn(64, depth).bfloat16(), torch.zeros(64, 64)
    a, b = DeviceBuffer(left), DeviceBuffer(right)

    def mp(x):
        return encode_tensor_map(x, [depth, 64], [depth * 2], [swb // 2, 64], "bfloat16", swizzle=swb)

    st = m.launch(name, 1, 128, [mp(a), mp(b), Out(o), depth], smem=16384 + 1024)
    assert (o - left.float() @ right.float().T).abs().max() < 1e-4
    return st


@pytest.mark.parametrize("swb", [128, 64, 32])
def test_wgmma_kmajor(m, swb):
    st = km(m, f"k{swb}", 192, swb)
    assert st["wgmma_count"] == 12
    assert st["wgmma_flops"] == 2 * 64 * 64 * 192


def test_wgmma_negative(m):
    for n, pat in (
        ("kbug1", "asynchronous copy|never-written"),
        ("kbug2", "in-flight wgmma|race"),
        ("kbug3", "in-flight wgmma"),
    ):
        with pytest.raises(PtxError, match=pat):
            km(m, n, 192, 128)


def test_wgmma_mnmajor(m):
    torch.manual_seed(1)
    left, right, o = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16(), torch.zeros(64, 64)
    a, b = DeviceBuffer(left), DeviceBuffer(right)

    def mp(x):
        return encode_tensor_map(x, [64, 64], [128], [64, 64], "bfloat16", swizzle=128)

    m.launch("mnmajor", 1, 128, [mp(a), mp(b), Out(o)], smem=16384 + 1024)
    assert (o - left.float().T @ right.float()).abs().max() < 1e-4


@pytest.mark.parametrize("areg", [0, 1])
def test_wgmma_plain(m, areg):
    torch.manual_seed(2)
    left, right, o = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16(), torch.zeros(64, 64)
    m.launch("plain", 1, 128, [left, right, Out(o), 1, areg])
    assert (o - left.float() @ right.float().T).abs().max() < 1e-5
    with pytest.raises(PtxError, match=r"without fence\.proxy\.async"):
        m.launch("plain", 1, 128, [left, right, o, 0, areg])


def test_wgmma_tf32(m):
    torch.manual_seed(3)
    left, right, o = torch.randn(64, 32), torch.randn(64, 32), torch.zeros(64, 64)
    a, b = DeviceBuffer(left), DeviceBuffer(right)

    def mp(x):
        return encode_tensor_map(x, [32, 64], [128], [32, 64], "float32", swizzle=128)

    m.launch("tf32", 1, 128, [mp(a), mp(b), Out(o)], smem=16384 + 1024)

    def t(x):
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    assert (o + t(left) @ t(right).T).abs().max() < 1e-5


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_ring(m, order):
    x, o = np.random.randn(7 * 128).astype("f4"), np.zeros(7 * 128, "f4")
    m.launch("ring0", 1, 160, [In(x), Out(o), 7], order=order)
    assert np.array_equal(o.reshape(7, 128), x.reshape(7, 128)[:, ::-1])
    for n in ("ring1", "ring2"):
        with pytest.raises(PtxError, match=r"asynchronous copy|race|never-written|exceeds the pending"):
            m.launch(n, 1, 160, [In(x), o, 7], order=order)


@pytest.mark.parametrize("swb", [0, 64])
def test_tma_oob_and_store(m, swb):
    src, dst = np.random.randn(20, 36).astype("f4"), np.zeros((20, 36), "f4")
    s, d = DeviceBuffer(src), DeviceBuffer(dst)

    def mp(b):
        return encode_tensor_map(b, [36, 20], [144], [16, 8], "float32", swizzle=swb)

    for x, y in ((0, 0), (28, 15), (-5, -3), (16, 8)):
        dst[:] = 0
        raw = np.zeros(128, "f4")
        stats = m.launch("tmacopy", 1, 128, [mp(s), mp(d), Out(raw), x, y, 1, 1])
        rows, left, right = range(max(y, 0), min(y + 8, 20)), max(x, 0) * 4, min(x + 16, 36) * 4
        assert stats["tma_load_sectors"] == sum((r * 144 + right - 1) // 32 - (r * 144 + left) // 32 + 1 for r in rows)
        pad = np.zeros((60, 80), "f4")
        pad[20:40, 20:56] = src
        box = pad[20 + y : 28 + y, 20 + x : 36 + x]
        if swb:
            i = np.arange(128) * 4
            raw = raw[(i ^ ((i >> 7 & 3) << 4)) // 4]
        assert np.array_equal(raw.reshape(8, 16), box)
        ref = np.zeros((60, 80), "f4")
        ref[20 + y : 28 + y, 20 + x : 36 + x] = 2 * box
        assert np.array_equal(dst, ref[20:40, 20:56])
    for f, w, pat in ((0, 1, "without fence.proxy.async"), (1, 0, "still reading")):
        with pytest.raises(PtxError, match=pat):
            m.launch("tmacopy", 1, 128, [mp(s), mp(d), raw, 0, 0, f, w])


def test_tma_rounds_to_tf32(m):
    """To nearest even, where the type of the map says so; what is not finite stays."""
    x = np.random.randn(8, 16).astype("f4")
    bits = x.view("u4")
    bits[0, :6] = 0x3F801000, 0x3F803000, 0x3FFFF000, 0x7F800000, 0xFF800000, 0x7F800001
    raw, unused = np.zeros(128, "f4"), np.zeros((8, 16), "f4")
    maps = [
        encode_tensor_map(DeviceBuffer(a), [16, 8], [64], [16, 8], t) for a, t in ((x, "tfloat32"), (unused, "float32"))
    ]
    m.launch("tmacopy", 1, 128, [*maps, Out(raw), 0, 0, 1, 1])
    got = raw.view("u4").reshape(8, 16)
    assert got[0, :6].tolist() == [0x3F800000, 0x3F804000, 0x40000000, 0x7F800000, 0xFF800000, 0x7F800001]
    rest = got[1:].view("f4").astype("f8")
    assert not (got[1:] & 0x1FFF).any()
    assert (np.abs(rest - x[1:]) <= np.abs(x[1:]) * 2.0**-11).all()


def test_bulk_reduce(m):
    o = np.zeros(64, "f4")
    m.launch("bulkred", 5, 64, [o])
    assert np.array_equal(o, np.arange(64) * 5 + 10)


def test_cluster(m):
    x, o = np.random.randn(8 * 32).astype("f4"), np.zeros(8 * 32, "f4")
    m.launch("cluster", 8, 32, [x, Out(o)])
    assert np.array_equal(o.reshape(2, 4, 32), np.roll(x.reshape(2, 4, 32), -1, axis=1))
    src, q = np.random.randn(16, 32).astype("f4"), np.zeros((2, 8, 16), "f4")
    s = DeviceBuffer(src)
    m.launch("mcast", 2, 128, [encode_tensor_map(s, [32, 16], [128], [16, 8], "float32"), Out(q)])
    assert np.array_equal(q[0], src[1:9, 4:20])
    assert np.array_equal(q[1], q[0])


def test_stmatrix_elect(m):
    o = np.zeros((32, 8), "u4")
    m.launch("stm", 1, 32, [Out(o)])
    lane = np.arange(32)[:, None]
    i = np.arange(4)[None]
    r = (lane * 8 + i * 2) | (lane * 8 + i * 2 + 1) << 16
    assert np.array_equal(o[:, :4], r)
    assert np.array_equal(o[:, 4:], r)
    q = np.zeros(32, "i4")
    m.launch("elect", 1, 32, [q])
    assert q.sum() == 1
