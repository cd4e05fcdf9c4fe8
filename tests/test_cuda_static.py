"""What the CUDA compiler says about the kernels, for every architecture, without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import emulated
import pytest
from emulated import build, toolkit

ROOT = toolkit.ROOT
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PREFIX = "ffkern_layer_forward_bf16_"


class Usage(NamedTuple):
    registers: int
    stack: int
    spills: int


class Compiled(NamedTuple):
    usage: dict[str, Usage]  # by kernel
    opcodes: dict[str, list[str]]


def parse_usage(text: str) -> dict[str, Usage]:
    """From the messages of ptxas -v."""
    usage = {}
    for part in text.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        numbers = {
            key: int(re.search(pattern, part).group(1))
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "stack": r"(\d+) bytes stack frame",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
            }.items()
        }
        spills = numbers["stores"] + numbers["loads"]
        usage[name] = Usage(numbers["registers"], numbers["stack"], spills)
    return usage


def parse_opcodes(text: str) -> dict[str, list[str]]:
    """From the machine code as cuobjdump prints it: `/*0010*/ @!P0 LDSM.16.M88.4 R8, [R2] ;`."""
    opcodes = {}
    for part in text.split("Function : ")[1:]:
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", part)
        opcodes[part.split()[0]] = code
    return opcodes


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """Machine code of every kernel for every architecture."""
    folder = tmp_path_factory.mktemp("images")
    dump, environment = toolkit.cuobjdump()
    source = ROOT / "csrc/cuda/layer_forward.cu"
    printed = build.run_all(
        [
            *(toolkit.nvcc(), "-cubin", f"-arch={a}", *build.NVCC_FLAGS, "-Xptxas=-v"),
            *(source, "-o", folder / f"{a}.cubin"),
        ]
        for a in ARCHITECTURES
    )
    found = {}
    for architecture, text in zip(ARCHITECTURES, printed, strict=True):
        command = [dump, "-sass", folder / f"{architecture}.cubin"]
        code = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[architecture] = Compiled(parse_usage(text), parse_opcodes(code.stdout))
    return found


def register_limits() -> dict[str, int]:
    """Registers a thread may use so that the blocks asked for fit on a multiprocessor."""
    header = (ROOT / "csrc/cuda/layer_forward_tile.h").read_text()
    limits = {}
    for name, values in re.findall(r"^\s*X\((\w+), ([\d, ]+)\)", header, re.M):
        *_, warps_m, warps_n, _, blocks = map(int, values.split(","))
        limits[PREFIX + name] = 65536 // (32 * warps_m * warps_n * blocks) // 8 * 8
    return limits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_no_stack_few_registers(architecture: str, compiled: dict[str, Compiled]) -> None:
    usage, limits = compiled[architecture].usage, register_limits()
    assert set(usage) == {*limits, "ffkern_layer_goodness"}
    for kernel, used in usage.items():
        assert used.stack == used.spills == 0, kernel
        assert used.registers <= min(limits.get(kernel, 64), 255), kernel


@pytest.mark.parametrize("instance", emulated.instances())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrappers_become_the_instructions_they_name(
    architecture: str, instance: str, compiled: dict[str, Compiled]
) -> None:
    """As often as the tile's shape asks for: the loop over K is there once, its steps unrolled."""
    code = compiled[architecture].opcodes[PREFIX + instance]
    header = (ROOT / "csrc/cuda/layer_forward_tile.h").read_text()
    values = re.search(rf"X\({instance}, ([\d, ]+)\)", header).group(1)
    m, n, k, stages, warps_m, warps_n, copy_bytes, _ = map(int, values.split(","))
    steps, fragments_m, fragments_n = k // 16, m // warps_m // 16, n // warps_n // 8

    assert code.count("HMMA.16816.F32.BF16") == steps * fragments_m * fragments_n
    loads = [c for c in code if c.startswith("LDSM")]
    assert loads == ["LDSM.16.M88.4"] * (steps * (fragments_m + fragments_n // 2))
    copies = [c for c in code if c.startswith("LDGSTS")]
    threads = 32 * warps_m * warps_n
    if copy_bytes == 2:
        assert not copies
    else:  # the stages filled ahead, and the one in the loop
        assert len(copies) == stages * (m + n) * k * 2 // copy_bytes // threads
        wide = {16: ".BYPASS.", 8: ".64", 4: ""}[copy_bytes]
        assert all(wide in c for c in copies)
    assert not [c for c in code if c.startswith(("RED", "ATOM", "LDL", "STL"))]


@pytest.mark.parametrize("kernel", ["layer_forward"])
def test_launch_parameters_fit(kernel: str, tmp_path: Path) -> None:
    """Shared memory of every instance against what the smallest of the devices grants a block."""
    program = tmp_path / "t.cpp"
    program.write_text(
        '#include "cuda/layer_forward_tile.h"\nusing namespace ffkern::cuda;\n'
        "#define CHECK(name, ...) \\\n"
        "  static_assert(LayerForwardTile<__VA_ARGS__>::kSharedBytes <= 99 * 1024); \\\n"
        "  static_assert(LayerForwardTile<__VA_ARGS__>::kMinBlocks * \\\n"
        "    (LayerForwardTile<__VA_ARGS__>::kSharedBytes + 1024) <= 228 * 1024);\n"
        "FFKERN_LAYER_FORWARD_INSTANCES(CHECK)\n"
    )
    build.run_all([["g++", "-std=c++20", "-fsyntax-only", f"-I{ROOT}/csrc", program]])


def test_driver_declarations_agree_with_cuda_h(tmp_path: Path) -> None:
    """driver.h is written by hand: each constant and each function against the toolkit's header."""
    ptxsim = emulated.load()
    header = (ROOT / "csrc/cuda/driver.h").read_text()
    functions = re.findall(r"X\((\w+), (cu\w+), (?:true|false)", header)
    assert len(functions) > 10
    constants = {
        "kSuccess": "CUDA_SUCCESS",
        "kNoBinaryForGpu": "CUDA_ERROR_NO_BINARY_FOR_GPU",
        "kInvalidPtx": "CUDA_ERROR_INVALID_PTX",
        "kUnsupportedPtxVersion": "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        "kAttributeMultiprocessors": "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT",
        "kAttributeCapabilityMajor": "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
        "kAttributeCapabilityMinor": "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
        "kAttributeSharedBytesOptin": "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
        "kFunctionMaxDynamicSharedBytes": "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
    }
    assert set(re.findall(r"\b(k\w+) = \d+;", header)) == set(constants)
    program = tmp_path / "t.cpp"
    program.write_text(
        """
#include <cuda.h>
#include <type_traits>
#include "cuda/driver.h"
using namespace ffkern::cuda;
// Enumerations of cuda.h are passed as int, and the handles are pointers to the same structures.
template <class T> struct Plain { using type = T; };
template <class T> requires std::is_enum_v<T> struct Plain<T> { using type = int; };
template <class T> requires std::is_enum_v<T> struct Plain<T*> { using type = int*; };
template <class F> struct Same;
template <class R, class... A> struct Same<R(A...)> {
  template <class S, class... B> static constexpr bool as(S (*)(B...)) {
    return sizeof(R) == sizeof(S) && (std::is_same_v<typename Plain<A>::type, B> && ...);
  }
};
"""
        + "".join(
            f"static_assert(Same<decltype({name})>::as(decltype(Driver::{member})(nullptr)));\n"
            for member, name in functions
        )
        + "".join(f"static_assert({ours} == {theirs});\n" for ours, theirs in constants.items())
    )
    include = ["-isystem", ptxsim.cuda_include(), f"-I{ROOT}/csrc"]
    build.run_all([["g++", "-std=c++20", "-fsyntax-only", *include, program]])
