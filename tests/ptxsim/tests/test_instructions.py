"""Instruction families against numpy, compiled for sm_75 and sm_80; and what the older target does not have."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import toolkit
from ptxsim import In, Module, Out, PtxError

SOURCE = Path(__file__).parent / "instructions.cu"
RNG = np.random.default_rng(7)
LANE = np.arange(32)


@pytest.fixture(scope="module", params=["sm_75", "sm_80"])
def m(request):
    return Module.from_cuda(SOURCE, arch=request.param)


@pytest.fixture(scope="module")
def m80():
    return Module.from_cuda(SOURCE, arch="sm_80")


# ---- matrices


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(m, count, trans):
    x = RNG.integers(0, 2**16, (4, 8, 8)).astype("u2")
    o = np.zeros((count, 32), "u4")
    stats = m.launch(f"ldmatrix_x{count}{'_trans' if trans else ''}", 1, 32, [In(x), Out(o)])
    want = x[:count].transpose(0, 2, 1) if trans else x[:count]
    assert np.array_equal(o, np.ascontiguousarray(want).view("u4").reshape(count, 32))
    assert stats["ldmatrix_requests"] == 1
    assert stats["ldmatrix_wavefronts"] == count


def fragments(matrix, rows, columns):
    """[register][lane] of a matrix whose register r holds elements (rows(r), columns(r, i)) of a lane."""
    registers = matrix.shape[0] * matrix.shape[1] * matrix.itemsize // 128
    per = 4 // matrix.itemsize
    out = np.zeros((registers, 32, per), matrix.dtype)
    for r in range(registers):
        for i in range(per):
            out[r, :, i] = matrix[rows(r), columns(r, i, per)]
    return out.view("u4").reshape(registers, 32)


@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [
        *[("mma_f16_k8", torch.float16, 8), ("mma_f16_k16", torch.float16, 16)],
        *[("mma_bf16_k8", torch.bfloat16, 8), ("mma_bf16_k16", torch.bfloat16, 16), ("mma_tf32_k8", torch.float32, 8)],
    ],
)
def test_mma(m, name, dtype, k):
    if m.target.startswith("sm_75") and name != "mma_f16_k8":
        assert name not in {kernel["name"] for kernel in m.kernels}
        return
    a, b = torch.randn(16, k).to(dtype), torch.randn(8, k).to(dtype)
    c, d = RNG.standard_normal((16, 8)).astype("f4"), np.zeros((4, 32), "f4")
    bits = (lambda t: t.numpy()) if dtype == torch.float32 else (lambda t: t.view(torch.int16).numpy().view("u2"))

    def step(r, i, per):  # along k
        return (LANE % 4) * per + i + 4 * per * r

    fa = fragments(bits(a), lambda r: LANE // 4 + 8 * (r % 2), lambda r, i, per: step(r // 2, i, per))
    fb = fragments(bits(b), lambda r: LANE // 4, step)
    place = [(LANE // 4 + 8 * (r // 2), LANE % 4 * 2 + r % 2) for r in range(4)]
    fc = np.stack([c[at] for at in place])
    stats = m.launch(name, 1, 32, [In(fa), In(fb), In(fc), Out(d)])
    if dtype == torch.float32:  # tensor cores ignore the low 13 bits
        a, b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    want = (a.double() @ b.double().T).numpy() + c
    assert np.array_equal(d, np.stack([want[at] for at in place]).astype("f4"))
    assert stats["mma_flops"] == 2 * 16 * 8 * k


def test_narrow_conversions(m80):
    special = [0.0, -0.0, 1e-8, 6e-8, 65519.0, 65520.0, 3e38, -3e38, np.inf, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8]
    x = np.concatenate([RNG.standard_normal(500) * 50, special]).astype("f4")
    y = np.roll(x, 5)
    n = len(x)
    o = np.zeros((3, n), "u4")
    m80.launch("narrow", 1, 32, [In(x), In(y), Out(o), n])
    tf32 = (x.view("u4").astype("u8") + 0x1000) & ~np.uint64(0x1FFF)
    assert np.array_equal(o[0], np.where(np.isinf(x), x.view("u4"), tf32.astype("u4")))
    for row, dtype in ((o[1], torch.float16), (o[2], torch.bfloat16)):
        high, low = (torch.tensor(v).to(dtype).view(torch.int16).numpy().view("u2").astype("u4") for v in (x, y))
        assert np.array_equal(row, high << 16 | low)


# ---- arithmetic


def test_doubles(m):
    x, y = RNG.standard_normal(200) * 3, RNG.standard_normal(200)
    o = np.zeros((10, 200))
    m.launch("doubles", 1, 32, [In(x), In(y), Out(o), 200])
    exact = [x + y, x * y, None, x / y, np.sqrt(abs(x))]
    for got, want in zip(o, exact, strict=False):
        assert want is None or np.array_equal(got, want)
    np.testing.assert_allclose(o[2], x * y + 0.1, rtol=1e-13, atol=1e-15)
    for got, want in zip(o[5:8], (np.exp(x), np.log(abs(x)), np.log1p(abs(x))), strict=True):
        np.testing.assert_allclose(got, want, rtol=4e-16, atol=1e-16)
    assert (abs(o[8]) <= abs(x + y)).all()  # towards zero
    assert (o[9] >= x * y).all()  # up
    assert (o[9] - x * y <= np.spacing(abs(x * y))).all()


def test_floats(m):
    x = (RNG.standard_normal(200) * 3).astype("f4")
    o = np.zeros((10, 200), "f4")
    m.launch("floats", 1, 32, [In(x), Out(o), 200])
    v, a = x.astype("f8"), abs(x.astype("f8"))
    want = [np.exp2(v), np.log2(a), 1 / v, 1 / np.sqrt(a), np.sqrt(a)]
    want += [np.exp(v), np.log(a), np.log1p(a), np.exp(v), np.tanh(v)]
    for got, right in zip(o, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6, atol=1e-7)


def signed(v, bits=32):
    return (int(v) + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def test_integers(m):
    n = 100
    x, y, z = (RNG.integers(0, 2**32, n).astype("u4") for _ in range(3))
    o = np.zeros((16, n), "u8")
    m.launch("integers", 1, 32, [In(x), In(y), In(z), Out(o), n])
    full = 1 << 32
    for i in range(n):
        a, b, c = int(x[i]), int(y[i]), int(z[i])
        both, wide_a, wide_b = b << 32 | a, a << 32 | b, b << 32 | c
        by = [both >> 8 * k & 255 for k in range(8)]
        clamped, wrapped = min(c & 63, 32), c & 31

        def pick(nibble, by=by):
            return (0xFF if by[nibble & 7] & 128 else 0) if nibble & 8 else by[nibble]

        position, length = b & 31, c & 31
        field = a >> position & (1 << length) - 1
        top = min(position + length - 1, 31)
        negative = length and a >> top & 1
        kept = min(length, 32 - position)
        at, count = c & 31, c >> 5 & 31
        mask = (1 << count) - 1 << at & full - 1
        want = [
            *[(both << clamped >> 32) % full, (both >> clamped) % full],
            *[(both << wrapped >> 32) % full, (both >> wrapped) % full],
            sum(pick(c >> 4 * k & 15) << 8 * k for k in range(4)),
            sum(by[(c & 3) + k] << 8 * k for k in range(4)),
            *[field, (field - (1 << kept)) % full if negative else field],
            (b & ~mask) | (a << at & mask),
            *[(a * b + c) % full, a * b >> 32, (signed(a) * signed(b) >> 32) % full],
            wide_a * wide_b >> 64,
            (signed(wide_a, 64) * signed(wide_b, 64) >> 64) % (1 << 64),
            *[a * b, signed(a) * signed(b) % (1 << 64)],
        ]
        assert [int(v) for v in o[:, i]] == want, (a, b, c)


# ---- between lanes


def test_shuffles(m):
    x = RNG.integers(0, 1000, 32).astype("i4")
    o = np.zeros((16, 32), "i4")
    m.launch("shuffles", 1, 32, [In(x), Out(o)])
    row = iter(o)
    for width in (32, 16, 8, 4):
        first = LANE // width * width
        up, down, other = LANE - 3, LANE + 2, LANE ^ 3
        assert np.array_equal(next(row), x[np.where(up >= first, up, LANE)])
        assert np.array_equal(next(row), x[np.where(down < first + width, down, LANE)])
        assert np.array_equal(next(row), x[other])
        assert np.array_equal(next(row), x[first + LANE * 7 % 32 % width])


@pytest.mark.parametrize("values", [[0, 1, 2, 3] * 8, [2] * 32, [-1] + [7] * 31], ids=["mixed", "equal", "one"])
def test_votes(m, values):
    x = np.array(values, "i4")
    o = np.zeros((8, 32), "u4")
    m.launch("votes", 1, 32, [In(x), Out(o)])
    odd = sum(1 << i for i in range(32) if x[i] & 1)
    equal = [sum(1 << j for j in range(32) if x[j] == x[i]) for i in range(32)]
    same = (x == x[0]).all()
    everyone = 2**32 - 1
    want = [(x >= 0).all(), (x == 3).any(), odd, odd in (0, everyone), equal, everyone if same else 0, same, everyone]
    for got, right in zip(o, want, strict=True):
        assert np.array_equal(got, np.broadcast_to(np.array(right).astype("u4"), 32))


def test_redux(m80):
    x = RNG.integers(-(2**31), 2**31, 32).astype("i4")
    o = np.zeros((8, 32), "i4")
    m80.launch("redux", 1, 32, [In(x), o])
    u = x.view("u4")
    want = [x.sum(dtype="i4"), x.min(), x.max(), u.min().view("i4")]
    want += [np.bitwise_and.reduce(x), np.bitwise_or.reduce(x), np.bitwise_xor.reduce(x)]
    for got, right in zip(o, want, strict=False):
        assert (got == right).all()
    assert (o[7, :12] == x[:12].sum(dtype="i4")).all()


def test_lock_inside_a_warp(m):
    lock, count = np.zeros(1, "i4"), np.zeros(1, "i4")
    m.launch("locked", 1, 64, [lock, count])
    assert count[0] == 64


# ---- memory


def test_vector_accesses(m):
    x4, x2 = RNG.random((32, 4), "f4"), RNG.random((32, 2), "f4")
    d2 = RNG.random((32, 2))
    o4, o2, od = np.zeros_like(x4), np.zeros_like(x2), np.zeros_like(d2)
    stats = m.launch("vectors", 1, 32, [In(x4), In(x2), In(d2), Out(o4), Out(o2), Out(od)])
    assert np.array_equal(o4, x4[::-1])
    assert np.array_equal(o2, x2[::-1])
    assert np.array_equal(od, d2[::-1])
    assert stats["global_load_sectors"] == (512 + 256 + 512) // 32


# ---- targets

REGISTERS = ".reg .b16 %h<4>; .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %rd<2>; .shared .align 16 .b8 s[64];\n"
MMA = "mma.sync.aligned.{} {{%f1,%f2,%f3,%f4}}, {{{}}}, {{{}}}, {{%f1,%f2,%f3,%f4}};"
FOUR, TWO = "%r1,%r2,%r3,%r4", "%r5,%r6"
NEEDS_SM_80 = {
    "cp.async": "cp.async.ca.shared.global [s], [%rd1], 16;",
    "cp.async.commit": "cp.async.commit_group;",
    "cp.async.wait": "cp.async.wait_all;",
    "mma f16 k16": MMA.format("m16n8k16.row.col.f32.f16.f16.f32", FOUR, TWO),
    "mma bf16 k8": MMA.format("m16n8k8.row.col.f32.bf16.bf16.f32", "%r1,%r2", "%r5"),
    "mma bf16 k16": MMA.format("m16n8k16.row.col.f32.bf16.bf16.f32", FOUR, TWO),
    "mma tf32": MMA.format("m16n8k8.row.col.f32.tf32.tf32.f32", FOUR, TWO),
    "cvt to bf16": "cvt.rn.bf16.f32 %h1, %f1;",
    "cvt to bf16x2": "cvt.rn.bf16x2.f32 %r1, %f1, %f2;",
    "cvt to f16x2": "cvt.rn.f16x2.f32 %r1, %f1, %f2;",
    "cvt to tf32": "cvt.rna.tf32.f32 %r1, %f1;",
    "fma bf16": "fma.rn.bf16 %h1, %h1, %h2, %h3;",
    "redux": "redux.sync.add.s32 %r1, %r2, 0xffffffff;",
    "mbarrier": "mbarrier.init.shared.b64 [s], 1;",
    "min f16": "min.f16 %h1, %h1, %h2;",
}
FROM_SM_75 = {
    "mma f16 k8": MMA.format("m16n8k8.row.col.f32.f16.f16.f32", "%r1,%r2", "%r5"),
    "ldmatrix": "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [s];",
    "ldmatrix trans": "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r1,%r2}, [s];",
    "fma f16": "fma.rn.f16 %h1, %h1, %h2, %h3;",
    "tanh": "tanh.approx.f32 %f1, %f2;",
    "match": "match.any.sync.b32 %r1, %r2, 0xffffffff;",
}


def assembled(target, statement):
    body = f"{{ {REGISTERS}ret;\n{statement}\nret; }}"
    return Module(f".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k()\n{body}\n")


@pytest.mark.parametrize("statement", NEEDS_SM_80.values(), ids=NEEDS_SM_80.keys())
def test_instruction_of_a_later_target(statement):
    assert assembled("sm_80", statement).info("k")["unsupported"] == []
    old = assembled("sm_75", statement)
    with pytest.raises(PtxError, match=r"line 7: unsupported '.*needs sm_80, and the module is for sm_75") as raised:
        old.launch("k", 1, 32, [])
    assert statement.split()[0].rstrip(";") in str(raised.value)


@pytest.mark.parametrize("statement", FROM_SM_75.values(), ids=FROM_SM_75.keys())
def test_instruction_of_sm_75(statement):
    assert assembled("sm_75", statement).info("k")["unsupported"] == []


def test_ptxas_agrees(tmp_path):
    """What is refused here is what the assembler refuses, and nothing else."""
    ptxas = toolkit.find("ptxas")
    assert ptxas is not None, "ptxas, which comes with nvcc, is missing"
    for statement in [*NEEDS_SM_80.values(), *FROM_SM_75.values(), "cvt.f32.bf16 %f1, %h1;"]:
        for target in ("sm_75", "sm_80"):
            module = assembled(target, statement)
            (tmp_path / "k.ptx").write_text(module.ptx)
            command = [ptxas, "-arch", target, tmp_path / "k.ptx", "-o", tmp_path / "k.cubin"]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            refused = module.info("k")["unsupported"] != []
            assert refused == (done.returncode != 0), (target, statement, done.stderr)


def test_hopper_is_not_ampere():
    fence = "wgmma.fence.sync.aligned;"
    for target in ("sm_80", "sm_90"):
        with pytest.raises(PtxError, match="wgmma needs sm_90a"):
            assembled(target, fence).launch("k", 1, 128, [])
    assembled("sm_90a", fence).launch("k", 1, 128, [])


@pytest.mark.parametrize("kind", ["cvt.s64.s32 %rd3, %rd2;", "cvt.u64.u32 %rd3, %rd2;", "st.global.u32 [%rd1], %rd2;"])
def test_a_register_wider_than_the_type_it_is_read_as(kind):
    """PTX lets cvt and st take the low part of a wider register; nvcc makes use of it."""
    store = "" if kind.startswith("st") else "st.global.u64 [%rd1], %rd3;"
    module = Module(
        f""".version 7.8
        .target sm_80
        .address_size 64
        .visible .entry k(.param .u64 out) {{
          .reg .b64 %rd<8>;
          .reg .b32 %r<4>;
          ld.param.u64 %rd1, [out];
          mov.u32 %r1, %tid.x;
          cvt.u64.u32 %rd2, %r1;
          add.s64 %rd2, %rd2, 4294967296;
          mul.wide.u32 %rd4, %r1, 8;
          add.s64 %rd1, %rd1, %rd4;
          {kind}
          {store}
          ret;
        }}"""
    )
    out = np.zeros(32, "i8")
    module.launch("k", grid=1, block=32, args=[Out(out)])
    assert (out == np.arange(32)).all()
