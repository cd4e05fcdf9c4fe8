"""What the CUDA compiler makes of the kernels, for every architecture, without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import emulated
import pytest
from emulated import build, toolkit

ROOT = toolkit.ROOT
CUDA = ROOT / "csrc" / "cuda"
CMAKE = (ROOT / "CMakeLists.txt").read_text()

# What CMakeLists.txt names, and the other members of the sm_80 family, which run the image of sm_80 and are compiled
# from the same PTX.
PTX_OF = {
    "sm_75": "compute_75",
    "sm_80": "compute_80",
    "sm_86": "compute_80",
    "sm_89": "compute_80",
    "sm_90": "compute_90",
    "sm_90a": "compute_90a",
    "sm_100": "compute_100",
    "sm_120": "compute_120",
}
NO_SM75 = ("bf16", "tf32")
ELEMENT_BYTES = {"bf16": 2, "f16": 2, "tf32": 4, "tf32x3": 4, "f32": 4}
SOURCE_OF = {"bf16": "bf16", "f16": "f16", "tf32": "tf32", "tf32x3": "tf32", "f32": "f32"}
# Longest first: two are compiled at a time.
SOURCES = ("tf32", "f32", "f16", "bf16", "hopper", "rows", "labels", "head")
ONLY_SM90A = "hopper"
IMAGES = [(s, a) for s in SOURCES for a in PTX_OF if not (s in NO_SM75 and a == "sm_75")]
IMAGES = [(s, a) for s, a in IMAGES if (s == ONLY_SM90A) == (a == "sm_90a")]


class Instruction(NamedTuple):
    opcode: str
    operands: str


class Kernel(NamedTuple):
    registers: int
    stack: int
    spills: int
    code: list[Instruction]
    labels: dict[str, int]  # number of the instruction that follows

    def opcodes(self) -> list[str]:
        return [i.opcode for i in self.code]

    def main_loop(self, opcode: str) -> list[Instruction]:
        """The pipeline's loop: with one barrier, and most of the instructions that begin so.

        Jumps backwards to blocks that were moved out of line look like loops too; the shortest range is the loop.
        """
        loops = []
        for end, instruction in enumerate(self.code):
            target = re.search(r"`\((\.L_\w+)\)", instruction.operands)
            if instruction.opcode.startswith("BRA") and target and self.labels[target.group(1)] <= end:
                loops.append((self.labels[target.group(1)], end))

        def inside(loop: tuple[int, int], start: str) -> int:
            return sum(i.opcode.startswith(start) for i in self.code[loop[0] : loop[1]])

        pipelines = [loop for loop in loops if inside(loop, "BAR.SYNC") == 1]
        begin, end = max(pipelines, key=lambda loop: (inside(loop, opcode), loop[0] - loop[1]))
        return self.code[begin : end + 1]


class Tile(NamedTuple):
    m: int
    n: int
    k: int
    stages: int
    warps_m: int
    warps_n: int
    copy_bytes: int
    blocks: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    def steps(self, element: int) -> int:
        return self.k * element // 32

    def fragments(self) -> tuple[int, int]:
        return self.m // self.warps_m // 16, self.n // self.warps_n // 8


class Product(NamedTuple):
    """One entry point."""

    direction: str
    math: str
    instance: str

    @property
    def name(self) -> str:
        return f"ffkern_{self.direction}_{self.math}_{self.instance}"

    @property
    def source(self) -> str:
        return SOURCE_OF[self.math]

    @property
    def element(self) -> int:
        return ELEMENT_BYTES[self.math]

    @property
    def tile(self) -> Tile:
        return Tile(*emulated.tile_values(self.instance))


PRODUCTS = [
    Product(direction, math, instance)
    for math, element in ELEMENT_BYTES.items()
    for instance in emulated.instances(element)
    for direction in ("forward", "gradient")
]
HOPPER_PRODUCTS = [
    Product(direction, math, instance)
    for math in ("bf16", "f16", "tf32")
    for instance in emulated.hopper_instances(ELEMENT_BYTES[math])
    for direction in ("forward", "gradient")
]
PRODUCT_IMAGES = [
    pytest.param(p, a, id=f"{p.name}-{a}") for p in PRODUCTS for a in PTX_OF if (p.source, a) in set(IMAGES)
]


def parse_usage(text: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Registers, stack and spills by architecture and kernel, from the messages of ptxas -v."""
    usage = {}
    for part in text.split("Compiling entry function ")[1:]:
        found = re.match(r"'(\w+)' for '(\w+)'", part)
        counts = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert found
        assert counts
        assert registers
        stack, stores, loads = map(int, counts.groups())
        usage[found.group(2), found.group(1)] = (int(registers.group(1)), stack, stores + loads)
    return usage


def parse_code(text: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """From the machine code as nvdisasm -c prints it: `/*0010*/ @!P0 LDSM.16.M88.4 R8, [R2] ;`."""
    found = {}
    for part in re.split(r"\.section\s+\.text\.", text)[1:]:
        code: list[Instruction] = []
        labels = {}
        for line in part.splitlines():
            if line.startswith(".L_"):
                labels[line.rstrip(":")] = len(code)
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)([^;]*);", line):
                code.append(Instruction(*match.groups()))
        assert code
        found[part.partition('"')[0].rstrip(",")] = code, labels
    return found


def compile_images(sources: dict[str, Path], architectures: list[tuple[str, str]], folder: Path) -> list[str]:
    """Compiles every source once for all its architectures, which leaves the machine code of each in folder/SOURCE;
    returns what the compiler said of each source."""
    commands = []
    for name, path in sources.items():
        targets: dict[str, list[str]] = {}
        for source, architecture in architectures:
            if source == name:
                targets.setdefault(PTX_OF[architecture], []).append(architecture)
        gencode = [f"-gencode=arch={ptx},code=[{','.join(codes)}]" for ptx, codes in targets.items()]
        keep = folder / name
        keep.mkdir()
        flags = [*build.NVCC_FLAGS, "-Xptxas=-v", "--keep", f"--keep-dir={keep}", f"-I{ROOT}/csrc"]
        commands.append([toolkit.nvcc(), "-fatbin", *gencode, *flags, path, "-o", keep / "all.fatbin"])
    return build.run_all(commands)


def disassemble(source: str, architecture: str, folder: Path) -> list[str | Path]:
    ptx, keep = PTX_OF[architecture], folder / source
    # The name has what there are several of: architectures of one PTX, PTX of one source.
    names = (f"*.{ptx}.{architecture}.cubin", f"*.{ptx}.cubin", f"{source}.cubin")
    cubin = next(found for name in names for found in keep.glob(name))
    disassembler = toolkit.find("nvdisasm")
    if disassembler is None:
        raise RuntimeError("nvdisasm is missing: pip install nvidia-cuda-nvdisasm.")
    return [disassembler, "-c", cubin]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Kernel]]:
    """Every kernel, by source and architecture."""
    folder = tmp_path_factory.mktemp("images")
    messages = compile_images({s: CUDA / f"{s}.cu" for s in SOURCES}, IMAGES, folder)
    # ptxas says so, as information, where registers keep wgmma from overlapping: then each waits for the last.
    assert not [text for text in messages if "serialized" in text]
    usage = {s: parse_usage(text) for s, text in zip(SOURCES, messages, strict=True)}
    texts = build.run_all(disassemble(s, a, folder) for s, a in IMAGES)
    images = {}
    for (source, architecture), text in zip(IMAGES, texts, strict=True):
        assert re.search(rf"\.target\s+{architecture}\b", text)
        code = parse_code(text)
        of_image = {k: u for (a, k), u in usage[source].items() if a == architecture}
        assert set(code) == set(of_image)
        images[source, architecture] = {k: Kernel(*u, *code[k]) for k, u in of_image.items()}
    return images


def test_every_image_that_is_built_is_tested() -> None:
    default = re.search(r'set\(FFKERN_CUDA_ARCHS "([^"]*)"', CMAKE)
    kernels = re.search(r"foreach\(kernel ([\w ]+)\)", CMAKE)
    without_sm75 = re.search(r'if\(kernel MATCHES "\^\(([\w|]+)\)\$"\)', CMAKE)
    assert default
    assert kernels
    assert without_sm75
    machine_code = {a for a in default.group(1).split(";") if a.startswith("sm_")}
    assert machine_code <= set(PTX_OF)
    assert set(kernels.group(1).split()) == set(SOURCES) == {p.stem for p in CUDA.glob("*.cu")}
    assert set(without_sm75.group(1).split("|")) == set(NO_SM75)


# ------------------------------------------------------------------------------- entry points and what they use


def launched(source: str) -> set[str]:
    """The kernels that the launch code of rows, labels or head asks for."""
    return set(re.findall(r'"(ffkern_\w+)"', (CUDA / f"{source}.cpp").read_text()))


def expected_kernels(source: str) -> set[str]:
    products = HOPPER_PRODUCTS if source == "hopper" else [p for p in PRODUCTS if p.source == source]
    return {p.name for p in products} or launched(source)


def launch_bounds(source: str) -> dict[str, tuple[int, int]]:
    """Threads and blocks a multiprocessor that each kernel is compiled for."""
    if source == "hopper":
        return {p.name: (384, 1) for p in HOPPER_PRODUCTS}
    products = {p.name: (p.tile.threads, p.tile.blocks) for p in PRODUCTS if p.source == source}
    if products:
        return products
    header = (CUDA / f"{source}.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"constexpr int (k\w+) = (\d+);", header)}
    text = (CUDA / f"{source}.cu").read_text()
    found = re.findall(r"__launch_bounds__\((\w+)(?:, (\d+))?\)\s+(\w+)\(", text)
    return {
        name: (int(threads) if threads.isdigit() else constants[threads], int(blocks or 1))
        for threads, blocks, name in found
    }


@pytest.mark.parametrize(("source", "architecture"), IMAGES)
def test_entry_points(source: str, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]) -> None:
    """An instance of the header's lists, or a kernel that launch code asks for, cannot be forgotten, nor one be there
    that nobody launches."""
    assert set(compiled[source, architecture]) == expected_kernels(source)
    assert set(launch_bounds(source)) == expected_kernels(source)


@pytest.mark.parametrize(("source", "architecture"), IMAGES)
def test_no_spills_no_stack_few_registers(
    source: str, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    bounds = launch_bounds(source)
    for name, kernel in compiled[source, architecture].items():
        threads, blocks = bounds[name]
        assert kernel.stack == kernel.spills == 0, name
        # Registers are handed out by the eight, and a thread can name 255 of them.
        assert kernel.registers <= min(65536 // (threads * blocks) // 8 * 8, 255), name


@pytest.mark.parametrize(("source", "architecture"), IMAGES)
def test_no_atomics_no_local_memory(
    source: str, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    """The same inputs give the same bits: no sum may depend on which block comes first."""
    forbidden = re.compile(r"(RED[GS]?|ATOM[GS]?|LDL|STL)(\.|$)")
    for name, kernel in compiled[source, architecture].items():
        assert not [o for o in kernel.opcodes() if forbidden.match(o)], name


# ------------------------------------------------------------------------------- the instructions of the products


@pytest.mark.parametrize(("product", "architecture"), PRODUCT_IMAGES)
def test_products_are_the_instructions_that_the_tile_asks_for(
    product: Product, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    """As often as the shape of the tile says: the loop over the depth is there once, its steps unrolled."""
    kernel = compiled[product.source, architecture][product.name]
    tile, steps = product.tile, product.tile.steps(product.element)
    m, n = tile.fragments()
    multiplies = [o for o in kernel.opcodes() if o.startswith("HMMA")]
    loads = [o for o in kernel.opcodes() if o.startswith("LDSM")]
    if product.math == "f32":
        assert not multiplies
        assert not loads
        # 4 sums a fragment and lane, one multiply-add each for every element of depth.
        loop = [i.opcode for i in kernel.main_loop("FFMA") if i.opcode.split(".")[0] == "FFMA"]
        assert len(loop) >= tile.k * m * n * 4
        return
    if product.math == "bf16":
        opcode, times = "HMMA.16816.F32.BF16", 1
    elif product.math == "f16":  # sm_75 has half the depth
        opcode, times = ("HMMA.1688.F32", 2) if architecture == "sm_75" else ("HMMA.16816.F32", 1)
    else:
        opcode, times = "HMMA.1688.F32.TF32", 3 if product.math == "tf32x3" else 1
    assert multiplies == [opcode] * (steps * m * n * times)
    if product.direction == "forward":
        assert loads == ["LDSM.16.M88.4"] * (steps * (m + n // 2))
    elif product.element == 2:  # transposed on the way
        assert loads == ["LDSM.16.MT88.4"] * (steps * (m + n // 2))
    else:  # read word by word
        assert not loads
    # None of it is outside of the loop, nor is there a second copy of it.
    assert [i.opcode for i in kernel.main_loop("HMMA") if i.opcode.startswith("HMMA")] == multiplies


@pytest.mark.parametrize(("product", "architecture"), PRODUCT_IMAGES)
def test_copies_are_asynchronous(
    product: Product, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    kernel = compiled[product.source, architecture][product.name]
    copies = [o for o in kernel.opcodes() if o.startswith("LDGSTS")]
    if architecture == "sm_75":
        assert not copies
        assert "LDGDEPBAR" not in kernel.opcodes()
        return
    tile = product.tile
    # Of the tiles: in the stages filled ahead, and once in the loop. Of the factors of a gradient: one a stage.
    factors = tile.stages if product.direction == "gradient" else 0
    assert copies.count("LDGSTS.E") == factors
    of_tiles = [o for o in copies if o != "LDGSTS.E"]
    if tile.copy_bytes == 2:
        assert not of_tiles
    else:
        pieces = (tile.m + tile.n) * tile.k * product.element // tile.copy_bytes // tile.threads
        name = {16: "LDGSTS.E.BYPASS.128.ZFILL", 8: "LDGSTS.E.64.ZFILL", 4: "LDGSTS.E.ZFILL"}[tile.copy_bytes]
        assert of_tiles == [name] * (tile.stages * pieces)


@pytest.mark.parametrize(("product", "architecture"), PRODUCT_IMAGES)
def test_copies_stay_under_way_while_a_stage_is_multiplied(
    product: Product, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    """At least three stages, and the only wait of the steady state leaves the newest groups pending: 2 of 4 stages,
    1 of 3. A wait for everything would turn the ring into one buffer."""
    kernel = compiled[product.source, architecture][product.name]
    loop = kernel.main_loop("FFMA" if product.math == "f32" else "HMMA")
    waits = [i.operands for i in loop if i.opcode == "DEPBAR.LE"]
    barriers = [i.opcode for i in loop if i.opcode.startswith("BAR.SYNC")]
    assert product.tile.stages >= 3
    assert len(barriers) == 1
    if architecture == "sm_75":  # copies go through registers at once
        assert not waits
    else:
        assert [w.split(",")[1].strip() for w in waits] == [hex(product.tile.stages - 2)]
        assert [i.opcode for i in loop].count("LDGDEPBAR") == 1


@pytest.mark.parametrize("product", HOPPER_PRODUCTS, ids=lambda p: p.name)
def test_hopper_products_are_its_instructions(
    product: Product, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    """Copies of boxes, fragments and wgmma as often as a stage has them; two stages are written out, which take turns
    in the registers. One group of wgmma stays under way while the next stage is read; the wait for all is outside."""
    kernel = compiled["hopper", "sm_90a"][product.name]
    m, n, k, stages = emulated.tile_values(product.instance)
    opcodes = kernel.opcodes()
    shape, dtype = (8, "TF32") if product.math == "tf32" else (16, "BF16")
    name = f"HGMMA.64x{n}x{shape}.F32" + ("" if product.math == "f16" else f".{dtype}")
    multiplies = [o for o in opcodes if o.startswith("HGMMA")]
    assert multiplies == [name] * 8
    forward = product.direction == "forward"
    turned = not forward and product.math == "tf32"  # floats that lie across, word by word
    fragments = [o for o in opcodes if o.startswith("LDSM")]
    assert fragments == ([] if turned else ["LDSM.16.M88.4" if forward else "LDSM.16.MT88.4"] * 8)
    assert opcodes.count("FENCE.VIEW.ASYNC.S") == (2 if turned else 1)  # of barriers; of what was turned
    boxes = 2 if forward else (m + n) // k
    assert opcodes.count("UTMALDG.2D") == boxes
    assert opcodes.count("UTMALDG.1D") == (0 if forward else 2)
    assert [o.split(".")[1] for o in opcodes if o.startswith("USETMAXREG")] in (
        ["TRY_ALLOC", "DEALLOC"],
        ["DEALLOC", "TRY_ALLOC"],
    )
    assert stages >= 4
    waits = [i.operands.split(",")[1].strip() for i in kernel.code if i.opcode == "WARPGROUP.DEPBAR.LE"]
    assert waits == ["0x1", "0x1", "0x0"]
    # Two of full stages, one of empty ones; where boxes are turned, two of those and one more of full stages.
    assert len([o for o in opcodes if o.startswith("SYNCS.PHASECHK")]) >= (6 if turned else 3)
    assert opcodes.count("SYNCS.EXCH.64") == (3 if turned else 2) * stages
    # One that announces bytes, three that leave, one that has turned.
    assert len([o for o in opcodes if o.startswith("SYNCS.ARRIVE")]) == (5 if turned else 4)


LARGE_IMAGES = [p for p in PRODUCT_IMAGES if p.values[0].element == 2 and p.values[0].tile[:2] == (128, 128)]


@pytest.mark.parametrize(("product", "architecture"), LARGE_IMAGES)
def test_large_tiles_multiply_more_than_they_load(
    product: Product, architecture: str, compiled: dict[tuple[str, str], dict[str, Kernel]]
) -> None:
    """At least two matrix multiplications for every load of four fragments, in the main loop."""
    loop = [i.opcode for i in compiled[product.source, architecture][product.name].main_loop("HMMA")]
    multiplies = sum(o.startswith("HMMA") for o in loop)
    loads = sum(o.startswith("LDSM") for o in loop)
    assert multiplies >= 2 * loads > 0


def test_there_are_large_tiles() -> None:
    """The test above would pass without any."""
    assert {(p.values[0].math, p.values[0].direction) for p in LARGE_IMAGES} == {
        (math, direction) for math in ("bf16", "f16") for direction in ("forward", "gradient")
    }


@pytest.mark.parametrize("bits", [16, 32])
def test_shared_memory_fits(bits: int, tmp_path: Path) -> None:
    """What every instance asks for against what the smallest devices grant a block: 64 KiB on sm_75, 99 KiB on sm_86
    and sm_120, and the blocks that launch bounds promise against the 164 KiB of sm_80."""
    program = tmp_path / "t.cpp"
    program.write_text(
        '#include "cuda/product.h"\nusing namespace ffkern::cuda;\n'
        "template <class T> constexpr int most = "
        "T::kForwardBytes > T::kGradientBytes ? T::kForwardBytes : T::kGradientBytes;\n"
        f"#define TILE(name, ...) Tile<{bits // 8}, __VA_ARGS__>\n"
        "#define CHECK(...) static_assert(most<TILE(__VA_ARGS__)> <= 99 * 1024); \\\n"
        "  static_assert(TILE(__VA_ARGS__)::kMinBlocks * (most<TILE(__VA_ARGS__)> + 1024) <= 164 * 1024);\n"
        f"FFKERN_TILES_{bits}BIT(CHECK)\n"
        # Every width of copies has an instance for sm_75: alignment may not decide whether a layer runs.
        "#define FITS(...) || (TILE(__VA_ARGS__)::kCopyBytes == copy && most<TILE(__VA_ARGS__)> <= 64 * 1024)\n"
        f"constexpr bool fits(int copy) {{ return false FFKERN_TILES_{bits}BIT(FITS); }}\n"
        f"#define WIDTH(...) static_assert(fits(TILE(__VA_ARGS__)::kCopyBytes));\n"
        f"FFKERN_TILES_{bits}BIT(WIDTH)\n"
    )
    build.run_all([["g++", "-std=c++20", "-fsyntax-only", f"-I{ROOT}/csrc", program]])


def test_shared_memory_and_registers_of_hopper(tmp_path: Path) -> None:
    """227 KiB a block, of which the one on a multiprocessor leaves a KiB to the system; 65536 registers, of which a
    warpgroup that gives some back leaves no more than the others take."""
    program = tmp_path / "t.cpp"
    checks = [
        "  static_assert(T::kBytes <= 227 * 1024 && T::kStageBytes % 1024 == 0 && T::kTileM == m && T::kTileK == k);",
        "  static_assert(128 * (T::kProducerRegisters[0] + 2 * T::kConsumerRegisters[0]) <= 384 * 168);",
        "  static_assert(128 * (T::kProducerRegisters[1] + 2 * T::kConsumerRegisters[1]) <= 384 * 168);",
    ]
    text = "\n".join(checks)
    program.write_text(
        '#include "cuda/hopper.h"\nusing namespace ffkern::cuda;\n'
        f"template <class T, int m, int k> void check() {{\n{text}\n}}\n"
        "#define CHECK(name, m, n, k, stages) template void check<HopperTile<BYTES, n, stages>, m, k>();\n"
        "#define BYTES 2\nFFKERN_HOPPER_16BIT(CHECK)\n#undef BYTES\n#define BYTES 4\nFFKERN_HOPPER_32BIT(CHECK)\n"
    )
    build.run_all([["g++", "-std=c++20", "-fsyntax-only", f"-I{ROOT}/csrc", program]])


# ------------------------------------------------------------------------------- the wrappers of PTX instructions


class Wrapper(NamedTuple):
    function: str
    body: str  # with `s`, an address in shared memory, `in` and `out`
    opcode: str  # a pattern, found once
    since: int = 75


_D = "float d[4] = {}; uint32_t a[4] = {in[0], in[1], in[2], in[3]}; "
_OUT = " for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(d[i]);"
_F = "__uint_as_float(in[0]), __uint_as_float(in[1])"
WRAPPERS = [
    Wrapper("store_shared", "store_shared(s, uint4{in[0], in[1], in[2], in[3]});", r"STS\.128"),
    Wrapper("store_shared", "store_shared(s, uint2{in[0], in[1]});", r"STS\.64"),
    Wrapper("store_shared", "store_shared(s, in[0]);", r"STS"),
    Wrapper("load_shared", "out[0] = __float_as_uint(load_shared(s));", r"LDS(\.U)?"),
    Wrapper("load_shared2", "float2 v = load_shared2(s); out[0] = __float_as_uint(v.x + v.y);", r"LDS(\.U)?\.64"),
    Wrapper(
        "load_shared4",
        "float4 v = load_shared4(s); out[0] = __float_as_uint(v.x + v.y + v.z + v.w);",
        r"LDS(\.U)?\.128",
    ),
    Wrapper("copy_async", "copy_async<16>(s, in, in[9]);", r"LDGSTS\.E\.BYPASS\.128\.ZFILL", 80),
    Wrapper("copy_async", "copy_async<8>(s, in, in[9]);", r"LDGSTS\.E\.64\.ZFILL", 80),
    Wrapper("copy_async", "copy_async<4>(s, in, in[9]);", r"LDGSTS\.E\.ZFILL", 80),
    Wrapper("commit_copies", "commit_copies();", r"LDGDEPBAR", 80),
    Wrapper("wait_for_copies", "wait_for_copies<1>();", r"DEPBAR\.LE", 80),
    Wrapper("load_matrices", "uint32_t m[4]; load_matrices(m, s); out[0] = m[0] ^ m[3];", r"LDSM\.16\.M88\.4"),
    Wrapper(
        "load_matrices_transposed",
        "uint32_t m[4]; load_matrices_transposed(m, s); out[0] = m[0] ^ m[3];",
        r"LDSM\.16\.MT88\.4",
    ),
    Wrapper("multiply_bf16", f"{_D} multiply_bf16(d, a, in[4], in[5]); {_OUT}", r"HMMA\.16816\.F32\.BF16", 80),
    Wrapper("multiply_tf32", f"{_D} multiply_tf32(d, a, in[4], in[5]); {_OUT}", r"HMMA\.1688\.F32\.TF32", 80),
    Wrapper("multiply_f16_half", f"{_D} multiply_f16_half(d, a[0], a[1], in[4]); {_OUT}", r"HMMA\.1688\.F32"),
    Wrapper("multiply_f16", f"{_D} multiply_f16(d, a, in[4], in[5]); {_OUT}", r"HMMA\.16816\.F32", 80),
    # No device has an instruction that rounds to nearest, ties away: a test for infinity, an addition and a mask.
    Wrapper("round_tf32", "out[0] = round_tf32(__uint_as_float(in[0]));", r"FSETP\.GEU\.AND", 80),
    Wrapper("pack_bf16", f"out[0] = pack_bf16({_F});", r"F2FP\.BF16(\.F32)?\.PACK_AB", 80),
    Wrapper("to_f16", "out[0] = to_f16(__uint_as_float(in[0]));", r"F2FP?\.\S*(F16|PACK_AB)\S*"),
    Wrapper("from_f16", "out[0] = __float_as_uint(from_f16(static_cast<uint16_t>(in[0])));", r"HADD2\.F32"),
]


WRAPPED = [a for a in PTX_OF if a != "sm_90a"]  # whose own wrappers are looked for in the products


def wrapper_functions() -> dict[str, list[str]]:
    """Bodies of the functions in ptx.cuh that contain asm, by name."""
    text = re.sub(r"//.*", "", (CUDA / "ptx.cuh").read_text())
    found: dict[str, list[str]] = {}
    for part in text.split("__device__ __forceinline__")[1:]:
        name = re.search(r"(\w+)\(", part)
        assert name
        if re.search(r"\basm\b", part):
            found.setdefault(name.group(1), []).append(part)
    return found


def test_a_wrapper_is_one_instruction() -> None:
    functions = wrapper_functions()
    assert {w.function for w in WRAPPERS} == set(functions)
    for name, overloads in functions.items():
        for body in overloads:
            statements = re.findall(r"\basm(?: volatile)?\((.*?)\);", body, re.S)
            assert len(statements) == len(re.findall(r"\basm\b", body)), name
            # A second statement only as the alternative of the first.
            assert 1 <= len(statements) <= 1 + len(re.findall(r"\belse\b", body)), name
            for statement in statements:
                literals = re.match(r'\s*((?:"[^"]*"\s*)+)', statement)
                assert literals, name
                instruction = "".join(re.findall(r'"([^"]*)"', literals.group(1)))
                assert instruction.endswith(";"), name
                assert instruction.count(";") == 1, name
                assert "\\n" not in instruction, name
    files = ("ptx.cuh", "ptx_sm90a.cuh")
    others = [p for p in CUDA.iterdir() if p.suffix in (".cu", ".cuh", ".h") and p.name not in files]
    assert not [p.name for p in others if re.search(r"\basm\b", re.sub(r"//.*", "", p.read_text()))]


@pytest.fixture(scope="module")
def wrapper_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Opcodes of one kernel a wrapper, by architecture."""
    folder = tmp_path_factory.mktemp("wrappers")
    source = folder / "wrappers.cu"
    kernels = [
        f"#if __CUDA_ARCH__ >= {w.since}0\n"
        f'extern "C" __global__ void wrapper{i}(const uint32_t* in, uint32_t* out) {{\n'
        "  extern __shared__ __align__(16) unsigned char shared[];\n"
        f"  [[maybe_unused]] const uint32_t s = shared_address(shared) + threadIdx.x * 16;\n  {w.body}\n}}\n#endif\n"
        for i, w in enumerate(WRAPPERS)
    ]
    source.write_text('#include "cuda/ptx.cuh"\nusing namespace ffkern::cuda;\n' + "".join(kernels))
    images = [("wrappers", a) for a in WRAPPED]
    compile_images({"wrappers": source}, images, folder)
    texts = build.run_all(disassemble("wrappers", a, folder) for a in WRAPPED)
    return {
        a: {k: [i.opcode for i in code] for k, (code, _) in parse_code(text).items()}
        for a, text in zip(WRAPPED, texts, strict=True)
    }


@pytest.mark.parametrize(
    ("wrapper", "architecture"),
    [
        pytest.param(i, a, id=f"{w.function}-{a}-{i}")
        for i, w in enumerate(WRAPPERS)
        for a in WRAPPED
        if int(a.removeprefix("sm_")) >= w.since
    ],
)
def test_a_wrapper_becomes_the_instruction_that_it_names(
    wrapper: int, architecture: str, wrapper_code: dict[str, dict[str, list[str]]]
) -> None:
    code = wrapper_code[architecture][f"wrapper{wrapper}"]
    assert len([o for o in code if re.fullmatch(WRAPPERS[wrapper].opcode, o)]) == 1, code


# ------------------------------------------------------------------------------- the driver


def test_driver_declarations_agree_with_cuda_h(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """driver.h is written by hand: each constant and each function against the toolkit's header."""
    toolkit.put_nvcc_on_path()
    monkeypatch.syspath_prepend(str(ROOT / "tests/ptxsim"))
    import ptxsim

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
        "kPointerDevice": "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL",
        "kEventDisableTiming": "CU_EVENT_DISABLE_TIMING",
        "kTensorUint16": "CU_TENSOR_MAP_DATA_TYPE_UINT16",
        "kTensorFloat32": "CU_TENSOR_MAP_DATA_TYPE_FLOAT32",
        "kTensorTf32": "CU_TENSOR_MAP_DATA_TYPE_TFLOAT32",
        "kTensorNotInterleaved": "CU_TENSOR_MAP_INTERLEAVE_NONE",
        "kTensorNoSwizzle": "CU_TENSOR_MAP_SWIZZLE_NONE",
        "kTensorSwizzle128": "CU_TENSOR_MAP_SWIZZLE_128B",
        "kTensorPromote128": "CU_TENSOR_MAP_L2_PROMOTION_L2_128B",
        "kTensorFillZero": "CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE",
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
