"""The mutants of the CUDA kernels: how they are made, what is kept of them, and the sample that has to be caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
from mutation import cuda, ptx, report, survivors
from mutation.outcomes import Outcome, Outcomes, score

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def modules() -> cuda.Modules:
    emulated.load()  # nvcc is on the path
    return cuda.Modules(cuda.version())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("bar.sync 0;", ""),
        ("bar.warp.sync -1;", ""),
        ("cp.async.wait_group 2;", "cp.async.wait_group 3;"),
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
        ("cp.async.commit_group;", ""),
        (
            "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%r4], %r5; selp.b32 %r3, 1, 0, p;}",
            "mov.b32 %r3, 1;",
        ),
        ("mbarrier.arrive.shared::cta.b64 _, [%r7];", ""),
        ("mbarrier.init.shared::cta.b64 [%r1], %r2;", "mbarrier.init.shared::cta.b64 [%r1], 2;"),
        ("fence.proxy.async;", ""),
        ("@!%p3 bra $L__BB0_2;", ""),
        ("selp.f32 %f1, %f2, 0f00000000, %p1;", "mov.f32 %f1, %f2;"),
        ("or.pred %p3, %p1, %p2;", "mov.pred %p3, %p1;"),
        ("setp.gt.f32 %p1, %f1, 0f00000000;", "setp.leu.f32 %p1, %f1, 0f00000000;"),
        ("setp.lt.s32 %p1, %r1, %r2;", "setp.le.s32 %p1, %r1, %r2;"),
        ("min.s32 %r3, %r1, 16;", "mov.s32 %r3, %r1;"),
        ("and.b32 %r2, %r1, 31;", "and.b32 %r2, %r1, 15;"),
        ("and.b32 %r2, %r1, -8;", "and.b32 %r2, %r1, -16;"),
        ("shl.b32 %r2, %r1, 4;", "shl.b32 %r2, %r1, 5;"),
        ("xor.b32 %r3, %r1, %r2;", "mov.b32 %r3, %r1;"),
        ("shfl.sync.bfly.b32 %r15|%p11, %r13, %r35, %r34, %r36;", "mov.b32 %r15, %r13;"),
        ("cp.async.cg.shared.global [%r5], [%rd6], 16, %r7;", "cp.async.cg.shared.global [%r5+16], [%rd6], 16, %r7;"),
        (
            "cp.async.bulk.tensor.2d.x [%r1], [%rd2, {%r3, %r4}], [%r5];",
            "cp.async.bulk.tensor.2d.x [%r1], [%rd2, {0, %r4}], [%r5];",
        ),
        ("ldmatrix.x4 {%r1, %r2}, [%r5];", "ldmatrix.x4 {%r1, %r2}, [%r5+16];"),
        ("bar.red.popc.u32 %r1, 0, %p2;", "selp.u32 %r1, 1, 0, %p2;"),
        ("add.s32 %r2, %r1, 1;", "add.s32 %r2, %r1, 2;"),
        ("add.s64 %rd2, %rd1, 4096;", "add.s64 %rd2, %rd1, 8192;"),
        ("add.s32 %r2, %r1, 16416;", "add.s32 %r2, %r1, 16448;"),
        ("ld.shared.v2.f32 {%f1, %f2}, [%r1+12];", "ld.shared.v2.f32 {%f1, %f2}, [%r1+20];"),
        ("st.global.u16 [%rd1], %rs1;", "st.global.u16 [%rd1+2], %rs1;"),
    ],
)
def test_a_mistake_of_every_kind(line: str, wrong: str) -> None:
    assert ptx.changed(line) == wrong


@pytest.mark.parametrize("line", ["mul.f32 %f3, %f1, %f2;", "ret;", "setp.lt.u32 %p34, %r80, 2146435071;"])
def test_what_is_no_place_for_a_mistake(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"line is {line!r}; expected an instruction of ")):
        ptx.changed(line)


TEXT = """
.version 8.0
.target sm_80
.visible .entry one(
)
{
.loc 1 7 3
  bar.sync 0;
.loc 2 20 1, function_name $L__info_string0, inlined_at 1 8 5
  // a comment
  bar.sync 	0;
.loc 2 20 1, function_name $L__info_string0, inlined_at 3 2 1
  bar.sync 0;
.loc 1 0 3
  bar.sync 0;
}
.visible .entry two(
)
{
.loc 1 7 3
  bar.sync 0;
}
.file 1 "/somewhere/kernel.cuh"
.file 2 "/somewhere/else.cuh"
.file 3 "/somewhere/entries.cu"

	.section	.debug_str
{
}
"""


def test_sites_are_lines_and_where_they_were_inlined() -> None:
    one = ptx.Listing(TEXT, "entries.cu")
    assert one.lines == ptx.bare(TEXT)
    own = ptx.Site("barrier", "kernel.cuh", 7, None)
    called = ptx.Site("barrier", "else.cuh", 20, ("kernel.cuh", 8))
    instantiated = ptx.Site("barrier", "else.cuh", 20, None)
    assert {k: {s: len(i) for s, i in of.items()} for k, of in one.places.items()} == {
        "one": {own: 1, called: 1, instantiated: 1},  # and none of line 0, which the compiler has made
        "two": {own: 1},
    }
    assert one.mutant(own, ["one", "two"]).count("bar.sync") == 3
    only = one.mutant(called, ["one"]).splitlines()
    assert [i for i, line in enumerate(one.lines) if line != only[i]] == one.places["one"][called]


def test_outcomes_survive_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "new" / "outcomes.jsonl"
    first = Outcome("a", "forward", "bound", True, "test: wrong", 0.5)
    second = Outcome("b", "forward", "lane", False, "", 2.0)
    Outcomes(path, "1").add(first)
    with path.open("a") as file:
        file.write('{"mutant": "torn')
    again = Outcomes(path, "1")
    assert again.found == {"a": first}
    again.add(second)
    assert Outcomes(path, "1").found == {"a": first, "b": second}
    assert Outcomes(path, "2").found == {}
    table = score([first, second])
    assert "| forward | 1/1 | 0/1 | 1/2 | 50 % |" in table


def test_every_explanation_is_of_a_mutant(modules: cuda.Modules) -> None:
    for pattern, why in survivors.RULES:
        assert any(re.search(pattern, name) for name in modules.names), f"{pattern} matches nothing ({why})"


def test_every_kind_of_mistake_is_made_somewhere(modules: cuda.Modules) -> None:
    lines = {line for listing in modules.listings.values() for line in listing.lines}
    unused = [pattern.pattern for _, pattern, _ in ptx.KINDS if not any(map(pattern.search, lines))]
    assert not unused


def test_mutants_have_names_of_their_own_and_change_something(modules: cuda.Modules) -> None:
    assert len(set(modules.names)) == len(modules.names)
    assert {mutant.family for mutant in modules.mutants} == set(cuda.FAMILIES)
    for listing in modules.listings.values():
        for kernel, places in listing.places.items():
            for site in list(places)[:3]:
                assert listing.mutant(site, [kernel]) != "\n".join(listing.lines) + "\n", (kernel, site)


def test_a_sample_is_caught_again() -> None:
    """In a process of its own, whose copies load the wrong kernels."""
    assert len(report.known()) == report.COUNT
    command = [sys.executable, "-m", "mutation", "sample"]
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{report.COUNT} of {report.COUNT} caught again" in done.stdout
