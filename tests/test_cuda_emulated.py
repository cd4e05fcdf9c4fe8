"""The CUDA kernels and their launch code on a software driver, which checks what a GPU does not:
every bound, every shared-memory race, every byte that is read before it was written."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from types import ModuleType

import emulated
import pytest
import torch
from emulated import build
from layer_forward_cases import KINDS, Case, check, random_case
from torch import Tensor

pytestmark = pytest.mark.emulated

ROOT = emulated.toolkit.ROOT
INSTANCES = emulated.instances()
LARGE, SMALL, PIECES_8, PIECES_4, PIECES_2 = INSTANCES
ops = torch.ops.ffkern_emulated


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    return emulated.load()


@pytest.fixture(autouse=True)
def clean(driver: ModuleType) -> None:
    driver.driver_clear()


def forward(case: Case, instance: str = "") -> tuple[Tensor, ...]:
    with emulated.environment(**{emulated.FORCE: instance}):
        return ops.layer_forward(*case.arguments())


def records(driver: ModuleType) -> list[dict]:
    """The launches of the forward kernel, oldest first."""
    launches = driver.driver_last_stats()
    return [r for r in launches if r["kernel"].startswith("ffkern_layer_forward_bf16_")]


def chosen(driver: ModuleType) -> str:
    return records(driver)[-1]["kernel"].removeprefix("ffkern_layer_forward_bf16_")


def tile(instance: str) -> tuple[int, int, int]:
    m, n, k = re.match(r"(\d+)x(\d+)x(\d+)_", instance).groups()
    return int(m), int(n), int(k)


# ------------------------------------------------------------------------------- every instance


@pytest.mark.parametrize(("norm", "goodness"), KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (70, 136, 72), (137, 264, 168)], ids=str)
@pytest.mark.parametrize("instance", INSTANCES)
def test_every_instance(
    instance: str, shape: tuple[int, int, int], norm: str, goodness: str, driver: ModuleType
) -> None:
    case = random_case(*shape, norm=norm, goodness=goodness)
    check(forward(case, instance), case)
    assert chosen(driver) == instance


@pytest.mark.parametrize("instance", INSTANCES)
def test_same_bits_under_any_schedule(instance: str, driver: ModuleType) -> None:
    """Warps in ascending, descending and random order; blocks one by one and interleaved."""
    case = random_case(140, 104, 136, goodness="sum_abs")
    first = forward(case, instance)
    for order in range(1, 6):
        with driver.driver_options(order=order, resident=-1 if order % 2 else 1):
            again = forward(case, instance)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("instance", INSTANCES)
def test_a_row_does_not_depend_on_its_batch(instance: str) -> None:
    case = random_case(131, 72, 80)
    everything = forward(case, instance)
    for row in (0, 17, 130):
        alone = forward(case.replace(x=case.x[row : row + 1]), instance)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(everything, alone, strict=True))


# ------------------------------------------------------------------------------- which instance


@pytest.mark.parametrize(
    ("first", "pitch", "expected"),
    [
        *[(0, 64, SMALL), (8, 72, SMALL), (0, 68, PIECES_8), (4, 64, PIECES_8)],
        *[(0, 66, PIECES_4), (2, 64, PIECES_4), (0, 65, PIECES_2), (1, 64, PIECES_2)],
    ],
)
@pytest.mark.parametrize("operand", ["x", "weight"])
def test_copies_are_as_wide_as_the_alignment(
    operand: str, first: int, pitch: int, expected: str, driver: ModuleType
) -> None:
    case = random_case(20, 40, 24)
    buffer = torch.full((24 * pitch + 8,), float("nan"), dtype=torch.bfloat16)
    matrix = getattr(case, operand)
    view = buffer[first:].as_strided(matrix.shape, (pitch, 1), buffer.storage_offset() + first)
    assert buffer.data_ptr() % 16 == 0
    case = case.replace(**{operand: view.copy_(matrix)})
    check(forward(case), case)
    assert chosen(driver) == expected


def test_large_tiles_once_they_fill_the_device(driver: ModuleType) -> None:
    few = random_case(128 * 10, 16, 128 * 10)  # 100 tiles for the 108 multiprocessors of sm_80
    forward(few)
    assert chosen(driver) == SMALL
    many = random_case(128 * 11, 16, 128 * 10)
    check(forward(many), many)
    assert chosen(driver) == LARGE


def test_forcing_an_instance_that_does_not_fit() -> None:
    case = random_case(4, 17, 8)
    with pytest.raises(ValueError, match=f"{SMALL} needs x, weight and their rows aligned to 16"):
        forward(case, SMALL)
    with pytest.raises(ValueError, match=f"=fastest is not one of {LARGE}, {SMALL}"):
        forward(case, "fastest")


# ------------------------------------------------------------------------------- what it touches


@pytest.mark.parametrize("instance", INSTANCES)
def test_no_bank_conflicts(instance: str, driver: ModuleType) -> None:
    """Shared memory serves 128 bytes a wavefront, and no request takes more than its bytes need."""
    m, n, k = tile(instance)
    width = int(instance.rpartition("_a")[2])
    forward(random_case(2 * m, 4 * k, 2 * n), instance)
    stats = records(driver)[-1]["stats"]
    assert stats["ldmatrix_wavefronts"] == 4 * stats["ldmatrix_requests"] > 0
    assert stats["cp_async_smem_wavefronts"] * 128 == stats["cp_async_requests"] * 32 * width
    # Stores take one wavefront each: pairs of h by whole warps, row sums by eight lanes. Only where
    # tiles are filled through registers there are stores of 16 bytes, which take four.
    blocks, steps, chunks = 4, 4, (m + n) * k * 2 // 16
    wide_stores = blocks * steps * chunks // 32 if width == 2 else 0
    assert stats["shared_store_wavefronts"] == stats["shared_store_requests"] + 3 * wide_stores


@pytest.mark.parametrize("shape", [(64, 64, 64), (130, 136, 200), (256, 128, 256)], ids=str)
@pytest.mark.parametrize("instance", [LARGE, SMALL])
def test_moves_the_bytes_that_it_says(instance: str, shape: tuple[int, int, int], driver: ModuleType) -> None:
    rows, inputs, units = shape
    forward(random_case(*shape), instance)
    stats = records(driver)[-1]["stats"]
    m, n, k = tile(instance)
    tiles_m, tiles_n, tiles_k = -(-rows // m), -(-units // n), -(-inputs // k)
    assert stats["cp_async_bytes"] == 2 * inputs * (rows * tiles_n + units * tiles_m)
    assert stats["global_store_bytes"] == 2 * rows * units + 4 * rows * (1 + tiles_n)
    assert stats["mma_flops"] == 2 * (tiles_m * m) * (tiles_n * n) * (tiles_k * k)
    if rows % 8 == 0 and units % 16 == 0:  # every row of h starts a sector: only whole ones leave
        assert stats["global_store_sectors"] * 32 == stats["global_store_bytes"]
    assert stats["atomics_global"] == stats["atomics_shared"] == 0


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("pitch", [40, 44, 46, 47])
def test_writes_nothing_around_its_outputs(first: int, pitch: int) -> None:
    """h as a view at any offset and pitch; the elements between and around its rows stay."""
    case = random_case(35, 24, 37)
    sentinel = 1234.0
    buffer = torch.full((first + 36 * pitch,), sentinel, dtype=torch.bfloat16)
    h = buffer.as_strided((35, 37), (pitch, 1), first)
    vectors = [torch.full((35 + 6,), sentinel) for _ in range(3)]
    goodness, scale, h_norm = (v[3:-3] for v in vectors)
    x, weight, bias, x_norm, norm, eps, kind = case.arguments()
    ops.layer_forward_(x, weight, bias, x_norm, h, goodness, scale, h_norm, norm, eps, kind)
    check((h, goodness, scale, h_norm), case)
    outside = torch.ones_like(buffer, dtype=torch.bool)
    outside.as_strided((35, 37), (pitch, 1), first).fill_(False)
    assert bool((buffer[outside] == sentinel).all())
    for vector in vectors:
        assert bool((vector[:3] == sentinel).all())
        assert bool((vector[-3:] == sentinel).all())


def test_offsets_have_64_bits() -> None:
    """Rows 2^30 elements apart: the third lies 4 GiB after the first. The pages between stay
    untouched, so that this takes address space, not memory."""
    pitch = 2**30 + 8
    far = torch.empty(2 * pitch + 16, dtype=torch.bfloat16)
    case = random_case(3, 16, 24)
    case = case.replace(x=far.as_strided((3, 16), (pitch, 1)).copy_(case.x))
    check(forward(case), case)


# ------------------------------------------------------------------------------- refusals


def test_refuses_what_is_not_there_yet() -> None:
    case = random_case(4, 8, 8)
    message = r"layer_forward: x is float32; on CUDA x and weight have to be bfloat16 so far"
    with pytest.raises(RuntimeError, match=message):
        forward(case.replace(x=case.x.float()))
    with pytest.raises(RuntimeError, match=r"weight is float16; on CUDA"):
        forward(case.replace(weight=case.weight.half()))
    with pytest.raises(RuntimeError, match=r"bias is bfloat16; expected float32"):
        forward(case.replace(bias=case.bias.bfloat16()))


def test_refuses_shapes_that_do_not_fit() -> None:
    case = random_case(4, 8, 16)
    with pytest.raises(RuntimeError, match=r"weight has shape \[16, 7\]; expected \[\*, 8\]"):
        forward(case.replace(weight=case.weight[:, :7]))
    with pytest.raises(RuntimeError, match=r"bias has shape \[15\]; expected \[16\]"):
        forward(case.replace(bias=case.bias[:15]))
    with pytest.raises(RuntimeError, match=r"x_norm has shape \[5\]; expected \[4\]"):
        forward(case.replace(x_norm=torch.ones(5)))
    with pytest.raises(RuntimeError, match=r"norm is 'l1'"):
        forward(case.replace(norm="l1"))


def test_refuses_outputs_that_it_cannot_write_in_place() -> None:
    case = random_case(4, 8, 6)
    x, weight, bias, x_norm, norm, eps, kind = case.arguments()

    def run(h: Tensor) -> None:
        values = [torch.empty(4) for _ in range(3)]
        ops.layer_forward_(x, weight, bias, x_norm, h, *values, norm, eps, kind)

    with pytest.raises(RuntimeError, match="h has strides that the kernel cannot write in place"):
        run(torch.empty(6, 4, dtype=torch.bfloat16).t())
    with pytest.raises(RuntimeError, match="h has strides"):
        run(torch.empty(1, 6, dtype=torch.bfloat16).expand(4, 6))
    with pytest.raises(RuntimeError, match="h is float32"):
        run(torch.empty(4, 6))


# ------------------------------------------------------------------------------- the launch code


def test_a_failed_launch_says_where(driver: ModuleType) -> None:
    case = random_case(8, 8, 8)
    with (
        driver.driver_options(max_instructions=100),
        pytest.raises(RuntimeError, match="cuLaunchKernel of ffkern_layer_forward_bf16_") as raised,
    ):
        forward(case)
    assert "CUDA_ERROR_LAUNCH_TIMEOUT (702)" in str(raised.value)
    assert re.search(r"PTX line \d+", str(raised.value))  # added by the test library
    driver.driver_clear()
    check(forward(case), case)


def test_threads_launch_side_by_side() -> None:
    case = random_case(40, 24, 32)
    want = forward(case)
    wrong = []

    def work() -> None:
        for _ in range(3):
            got = ops.layer_forward(*case.arguments())
            wrong.extend(not torch.equal(a, b) for a, b in zip(want, got, strict=True))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 4 * 3 * 4
    assert not any(wrong)


LAUNCH = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x = torch.ones(4, 8, dtype=torch.bfloat16)
try:
    torch.ops.ffkern_emulated.layer_forward(x, x, None, None, "l2", 1e-4, "mean_sq")
    print("ran")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("device", "path", "message"),
    [
        ("sm_80", "libmissing.so.1", "cannot load the CUDA driver 'libmissing.so.1'"),
        ("none", "", "cuInit failed with CUDA_ERROR_NO_DEVICE (100)"),
        ("sm_75", "", "the image 'layer_forward' has no kernel for this device (sm_75)"),
        ("sm_86", "", "ran"),
        ("sm_120", "", "ran"),
    ],
)
def test_devices(device: str, path: str, message: str, driver: ModuleType) -> None:
    command = [sys.executable, "-c", LAUNCH, build.FOLDER / "ffkern_emulated.so"]
    variables = {"FFKERN_CUDA_DRIVER": path or driver.driver_library(), "PTXSIM_DEVICE": device}
    with emulated.environment(**variables):
        done = subprocess.run(command, capture_output=True, text=True)
    assert message in done.stdout, done.stderr


def test_the_package_knows_nothing_of_the_emulator() -> None:
    sources = [p for folder in ("csrc", "ffkern") for p in (ROOT / folder).rglob("*") if p.is_file()]
    for path in sources:
        if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh", ".S"}:
            assert not re.search(r"ptxsim|emulat", path.read_text(), re.I), path
