"""sdist, wheel, what the library links to, and the sentence that each failed build ends with."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch

import ffkern

ROOT = Path(__file__).resolve().parents[1]
CUDA_WHEEL_BYTES = 7_400_000  # 5.4 MB with all architectures of CMakeLists.txt, and a third more

TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"

ONE_OP = """
import sys, torch, ffkern.ops
assert ffkern.__file__.startswith(sys.argv[1]), ffkern.__file__
labels = torch.tensor([0, 1, 2])
wrong = torch.ops.ffkern.wrong_labels(labels, 3, torch.tensor([0.0, 0.6, 0.99]))
assert wrong.tolist() == [1, 0, 1], wrong
assert torch._C._dispatch_has_kernel_for_dispatch_key("ffkern::wrong_labels", "CPU")
"""

ONE_FUNCTION = """
import sys, numpy, ffkern.arrays
assert ffkern.__file__.startswith(sys.argv[1]), ffkern.__file__
wrong = ffkern.arrays.wrong_labels(numpy.array([0, 1, 2]), numpy.array([0.0, 0.6, 0.99]), classes=3)
assert wrong.tolist() == [1, 0, 1], wrong
assert "torch" not in sys.modules
print(ffkern.arrays.build_info())
"""

# A CPU build of torch has no CUDA tensors: its dispatcher is told to use the CUDA kernel nevertheless.
CUDA_OPS = """
import torch
from ffkern import ops

has = torch._C._dispatch_has_kernel_for_dispatch_key
cpu, cuda = ({n for n in ops.SCHEMAS if has("ffkern::" + n, key)} for key in ("CPU", "CUDA"))
assert len(cpu) >= 24, cpu
assert cpu - cuda == {"pack_weight_"} and cuda <= cpu, cpu ^ cuda
keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
wrong_labels = torch.ops.ffkern.wrong_labels.default
try:
    wrong_labels.redispatch(keys, torch.tensor([0, 1]), 3, torch.zeros(2))
except RuntimeError as error:
    print(error)
"""

# The launch path of the same build, which a CUDA tensor would reach.
LAUNCH = """
#include <cstdio>
#include <exception>

#include "cuda/rows.h"
#include "cuda/layer.h"

int main() {
  try {
    ffkern::cuda::local_loss({0, nullptr}, 1, nullptr, {}, nullptr, nullptr, nullptr, false, nullptr);
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def succeed(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    done = run(*command, cwd=cwd, **env)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    base = tmp_path_factory.mktemp("egg")
    succeed(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", base, "sdist", "-d", out)
    (path,) = out.glob("ffkern-*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, so that a file missing there is noticed."""
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    (source,) = out.glob("ffkern-*")
    flags = ["-q", "--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir"]
    succeed(sys.executable, "-m", "pip", "wheel", *flags, "-w", out, source, FFKERN_CUDA="0")
    (path,) = out.glob("ffkern-*.whl")
    return path


def test_sdist_holds_everything_that_the_build_reads(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    sources |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "ffkern").rglob("*.py")}
    assert sources <= names
    top = {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile"}
    top |= {"requirements-dev.txt", "requirements-cuda.txt"}
    assert top <= names
    assert not [n for n in names if re.search(r"\.(so|o|pyc)$|^build/|\.venv", n)]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert re.fullmatch(rf"ffkern-[^-]+-{TAG}-{TAG}-linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if n.endswith(".so")} == {*LIBRARIES}
    assert "ffkern/py.typed" in names
    assert {n.split("/")[0].split("-")[0] for n in names} == {"ffkern"}
    assert any(n.endswith("/licenses/LICENSE") for n in names)
    assert not [n for n in names if "ptxsim" in n or "test" in n or n.endswith((".cpp", ".cu"))]
    packaged = {p.relative_to(ROOT).as_posix() for p in (ROOT / "ffkern").rglob("*.py")}
    assert packaged <= set(names)


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    flags = ["-q", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    succeed(sys.executable, "-m", "pip", "install", *flags, wheel)
    site = tmp_path / "site"
    succeed(sys.executable, "-c", ONE_OP, site, cwd=tmp_path, PYTHONPATH=str(site))
    said = succeed(sys.executable, "-c", ONE_FUNCTION, site, cwd=tmp_path, PYTHONPATH=str(site))
    facts = ast.literal_eval(said)
    assert facts["nvcc"] is None
    assert facts["torch"] == torch.__version__
    assert facts["version"] == ffkern.__version__


# What each library may need besides the system's, and symbols that nobody promises to have: torch's C shims are stable,
# its C++ is not; only the module for NumPy and CuPy knows Python; the CUDA driver is looked for when a kernel is
# launched.
PYTHON_MODULE = "ffkern/_arrays" + str(sysconfig.get_config_var("EXT_SUFFIX"))
LIBRARIES = {
    "ffkern/libffkern.so": (set(), r"\b(at|c10|torch)::|\b(Py|_Py|cu|cuda)[A-Z]"),
    "ffkern/_C.so": ({"libtorch_cpu.so", "libffkern.so"}, r"\b(at|c10|torch)::|\b(Py|_Py|cu|cuda)[A-Z]"),
    PYTHON_MODULE: ({"libffkern.so"}, r"\b(at|c10|torch)::|\b(aoti|cu|cuda)[A-Z_]"),
}


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("kind", ["wheel", "cuda_wheel"])
def test_libraries_need_what_they_may(kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """So whatever torch >= 2.13 is installed provides every symbol, and the package imports without a CUDA driver."""
    zipfile.ZipFile(request.getfixturevalue(kind)).extract(name, tmp_path)
    library = tmp_path / name
    dynamic = succeed("readelf", "-d", library)
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2"}
    system |= {"libpthread.so.0", "libdl.so.2"}  # parts of libc.so.6 since glibc 2.34
    allowed, forbidden = LIBRARIES[name]
    assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) - system == allowed
    assert set(re.findall(r"RUNPATH.*\[(.*)\]", dynamic)) == ({"$ORIGIN"} if allowed else set())
    undefined = succeed("nm", "-D", "-C", "--undefined-only", library).splitlines()
    assert not [s for s in undefined if re.search(forbidden, s)]


@pytest.mark.parametrize("kind", ["wheel", "cuda_wheel"])
def test_the_shared_library_shows_its_interface_alone(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    zipfile.ZipFile(request.getfixturevalue(kind)).extract("ffkern/libffkern.so", tmp_path)
    lines = succeed("nm", "-D", "-C", "--defined-only", tmp_path / "ffkern/libffkern.so").splitlines()
    functions = {line.split(maxsplit=2)[2].split("(")[0] for line in lines if line.split()[1] == "T"}
    assert functions
    declared = {
        name
        for path in (ROOT / "csrc").rglob("*.h")
        for name in re.findall(r"FFKERN_API (?:[\w&*]+ )*(\w+) *[({:]", path.read_text())
    }
    assert not [f for f in functions if not declared & set(f.split("::"))]  # a function, or a member of a class


@pytest.fixture(scope="session")
def cuda_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in the source tree, where the kernels have been compiled for the tests already: from nothing they take
    minutes. test_wheel_holds_the_package_and_nothing_else builds from the sdist."""
    out, temp = tmp_path_factory.mktemp("cuda_wheel"), tmp_path_factory.mktemp("cuda_build")
    # As the tree is configured, so that nothing is compiled again.
    known = ROOT / "build" / "cmake-cuda" / "configured.txt"
    werror = "1" if known.exists() and "-DFFKERN_WERROR=ON" in known.read_text() else "0"
    succeed(
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", temp, "build", "--build-base", temp),
        *("bdist_wheel", "--bdist-dir", temp / "bdist", "--dist-dir", out),
        FFKERN_CUDA="1",
        FFKERN_WERROR=werror,
    )
    (path,) = out.glob("ffkern-*.whl")
    return path


def test_cuda_wheel_is_small(cuda_wheel: Path) -> None:
    assert re.fullmatch(rf"ffkern-[^-]+-{TAG}-{TAG}-linux_\w+\.whl", cuda_wheel.name)
    assert cuda_wheel.stat().st_size <= CUDA_WHEEL_BYTES


def test_cuda_wheel_has_a_kernel_for_every_operation(cuda_wheel: Path, tmp_path: Path) -> None:
    """Also with a CPU build of torch, which this one may be: kernels are registered whether or not anybody can bring
    tensors for them."""
    site = tmp_path / "site"
    flags = ["-q", "--no-deps", "--no-index", "--target", site]
    succeed(sys.executable, "-m", "pip", "install", *flags, cuda_wheel)
    succeed(sys.executable, "-c", ONE_OP, site, cwd=tmp_path, PYTHONPATH=str(site))
    said = succeed(sys.executable, "-c", CUDA_OPS, cwd=tmp_path, PYTHONPATH=str(site))
    assert said.strip().splitlines()[-1].startswith("ffkern::wrong_labels: labels is on "), said
    assert "expected CUDA" in said


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (
            "/nonexistent/libcuda.so",
            r"ffkern: cannot load the CUDA driver '/nonexistent/libcuda.so' \(.*\): "
            r"install the NVIDIA driver, or set FFKERN_CUDA_DRIVER to its library\.",
        ),
        (
            "libm.so.6",
            r"ffkern: the CUDA driver 'libm.so.6' is too old, it lacks cuInit, .*: install a newer NVIDIA driver\.",
        ),
    ],
)
def test_a_launch_without_a_driver_says_what_is_missing(
    driver: str, sentence: str, cuda_wheel: Path, tmp_path: Path
) -> None:
    source, program = tmp_path / "launch.cpp", tmp_path / "launch"
    source.write_text(LAUNCH)
    zipfile.ZipFile(cuda_wheel).extract("ffkern/libffkern.so", tmp_path)
    library = tmp_path / "ffkern" / "libffkern.so"
    succeed("c++", "-std=c++20", f"-I{ROOT}/csrc", source, library, f"-Wl,-rpath,{library.parent}", "-o", program)
    assert re.fullmatch(sentence, succeed(program, FFKERN_CUDA_DRIVER=driver).strip())


def failed_build(tmp_path: Path, *python: str, **env: str) -> str:
    """The last sentence of a build that must fail."""
    command = [sys.executable, *python, "setup.py", "-q", "build_ext"]
    done = run(*command, "--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp", **env)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout
    sentence = done.stdout.strip().splitlines()[-1]
    assert sentence.startswith("ffkern: "), done.stdout
    assert sentence.endswith("."), sentence
    return sentence


@pytest.fixture
def no_torch(tmp_path: Path) -> Path:
    """A folder that serves as the only site-packages: setuptools without torch."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (folder / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
    return folder


def test_verdict_missing_torch(tmp_path: Path, no_torch: Path) -> None:
    sentence = failed_build(tmp_path, "-S", PYTHONPATH=str(no_torch))
    assert "torch is not installed" in sentence
    assert "--no-build-isolation" in sentence


def test_verdict_wrong_torch(tmp_path: Path, no_torch: Path) -> None:
    (no_torch / "torch").mkdir()
    (no_torch / "torch" / "__init__.py").touch()
    (no_torch / "torch" / "version.py").write_text("__version__ = '2.12.1+cu130'\n")
    sentence = failed_build(tmp_path, "-S", PYTHONPATH=str(no_torch))
    assert "torch 2.12.1+cu130" in sentence
    assert 'pip install "torch>=2.13"' in sentence


def test_verdict_missing_compiler(tmp_path: Path) -> None:
    sentence = failed_build(tmp_path, CXX="/nonexistent/c++")
    assert "CXX=/nonexistent/c++ does not exist: set it" in sentence


def test_verdict_old_compiler(tmp_path: Path) -> None:
    old = tmp_path / "c++"
    old.write_text("#!/bin/sh\necho 'unrecognized option -std=c++20' >&2\nexit 1\n")
    old.chmod(0o755)
    sentence = failed_build(tmp_path, CXX=str(old))
    assert "cannot compile C++20: set CXX to g++ >= 11" in sentence


def test_verdict_cuda_without_nvcc(tmp_path: Path) -> None:
    sentence = failed_build(tmp_path, FFKERN_CUDA="1", CUDA_HOME=str(tmp_path))
    assert f"there is no nvcc in CUDA_HOME={tmp_path}" in sentence
    assert "FFKERN_CUDA=0" in sentence


def test_verdict_old_nvcc(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    nvcc.chmod(0o755)
    sentence = failed_build(tmp_path, FFKERN_CUDA="1", CUDA_HOME=str(tmp_path))
    assert "release 11.8, older than 12.8" in sentence


@pytest.mark.parametrize(("variable", "value"), [("FFKERN_CUDA", "yes"), ("MAX_JOBS", "0"), ("MAX_JOBS", "many")])
def test_verdict_bad_setting(tmp_path: Path, variable: str, value: str) -> None:
    assert f"{variable}={value} is not" in failed_build(tmp_path, **{variable: value})


def test_auto_without_nvcc_is_loud(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path]
    # MAX_JOBS, read after the choice, ends the build there.
    done = run(*command, FFKERN_CUDA="auto", CUDA_HOME=str(tmp_path), MAX_JOBS="stop")
    assert "WITHOUT CUDA KERNELS" in done.stdout
    assert f"there is no nvcc in CUDA_HOME={tmp_path}" in done.stdout


def test_without_pythons_headers_there_are_no_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian ships Python without them: everything else is built."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: made.update(options))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    build = runpy.run_path(str(ROOT / "setup.py"))
    command = build["CMakeBuild"](setuptools.Distribution({"ext_modules": made["ext_modules"]}))
    command.ensure_finalized()
    assert [ext.name for ext in command.extensions] == ["ffkern._C"]
    assert [Path(path).name for path in command.get_outputs()] == ["_C.so", "libffkern.so"]


@pytest.mark.parametrize(("available", "expected"), [(3.9, 1), (4.1, 2), (1000.0, None)])
def test_parallelism_is_bounded_by_memory(
    monkeypatch: pytest.MonkeyPatch, available: float, expected: int | None
) -> None:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    build = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setitem(build["jobs"].__globals__, "available_gb", lambda: available)
    assert build["jobs"]() == (expected or 64)


def test_version_is_the_same_everywhere(sdist: Path) -> None:
    text = (ROOT / "ffkern" / "_version.py").read_text()
    (version,) = re.findall(r'__version__ = "(.*)"', text)
    assert sdist.name == f"ffkern-{version}.tar.gz"


NAMES = """
import sys, ffkern
assert not {"torch", "numpy"} & set(sys.modules), "import ffkern imports more than itself"
assert not hasattr(ffkern, "nope") and not hasattr(ffkern, "_nope")
for name in ffkern._FROM:
    assert getattr(ffkern, name).__name__ == name, name
    assert name in dir(ffkern), name
for name in ffkern.__all__:
    assert getattr(ffkern, name) is getattr(ffkern, name), name
assert ffkern.plot.__name__ == "ffkern.plot"
from ffkern import *
FFNet, ops.layer_forward, trainer.Trainer
"""


def test_names_are_imported_when_they_are_used() -> None:
    succeed(sys.executable, "-c", NAMES)
