"""The library without torch: standalone build, C++ tests, installation, the example, symbols of the objects."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from emulated.toolkit import build_tool
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configure(source: Path, folder: Path, *options: str) -> Path:
    run(
        *(build_tool("cmake"), "-S", source, "-B", folder, "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja')}", *options),
    )
    return folder


def build(folder: Path, *options: str, target: str = "all") -> Path:
    configure(ROOT, folder, "-DFFKERN_TORCH=OFF", *options)
    run(build_tool("cmake"), "--build", folder, "-j", "2", "--target", target)
    return folder


def cached(folder: Path, variable: str) -> str:
    """A variable of a configured build."""
    return re.search(rf"^{variable}:\w+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.M).group(1)  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def core() -> Path:
    return build(ROOT / "build" / "core", "-DFFKERN_WERROR=ON", "-DBUILD_SHARED_LIBS=OFF")


@pytest.fixture(scope="session")
def shared(core: Path) -> Path:
    # A unique symbol of the standard library would keep the library loaded, and test_unload would show nothing.
    gnu = "-fno-gnu-unique" if "g++" in Path(cached(core, "CMAKE_CXX_COMPILER")).resolve().name else ""
    options = "-DFFKERN_WERROR=ON", "-DBUILD_SHARED_LIBS=ON", f"-DCMAKE_CXX_FLAGS={gnu}"
    return build(ROOT / "build" / "core-shared", *options)


@pytest.fixture(params=["static", "shared"])
def package(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The prefix of an installed library."""
    folder = request.getfixturevalue("core" if request.param == "static" else "shared")
    run(build_tool("cmake"), "--install", folder, "--prefix", tmp_path / "prefix")
    return tmp_path / "prefix"


def test_core(core: Path) -> None:
    assert " 0 failures" in run(core / "test_core")


def test_threads(core: Path) -> None:
    assert " 0 failures" in run(core / "test_threads")


def test_kernels(core: Path) -> None:
    assert " 0 failures" in run(core / "test_kernels")


def caught(program: Path, mistake: str) -> str:
    """What a sanitizer reports of a mistake that the program makes in a call of a kernel."""
    done = subprocess.run([program, mistake], capture_output=True, text=True)
    assert done.returncode != 0, f"{mistake} is not caught"
    return done.stderr


def test_core_with_sanitizers() -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer: clean, and a mistake inside of a kernel is caught by each."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    folder = build(
        ROOT / "build" / "core-sanitizers",
        f"-DCMAKE_CXX_FLAGS={flags}",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )
    for test in ("test_core", "test_kernels", "test_threads"):
        assert " 0 failures" in run(folder / test)
    report = caught(folder / "test_kernels", "address")
    assert re.search(r"heap-buffer-overflow.*\nWRITE of size 4 .*\n +#0 .* in ffkern::cpu::forward", report), report
    report = caught(folder / "test_kernels", "undefined")
    assert re.search(r"csrc/cpu/\w+\.\w+:\d+:\d+: runtime error: load of misaligned address", report), report


def test_threads_with_thread_sanitizer(core: Path, tmp_path: Path) -> None:
    """Every kernel on a pool of threads is clean, and tasks that two threads run at once are caught."""
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    command = [cached(core, "CMAKE_CXX_COMPILER"), "-fsanitize=thread", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True).returncode or subprocess.run([tmp_path / "probe"]).returncode:
        pytest.skip("ThreadSanitizer does not work here")
    options = "-DCMAKE_CXX_FLAGS=-fsanitize=thread", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"
    for test in ("test_threads", "test_kernels"):
        folder = build(ROOT / "build" / "core-threads", *options, target=test)
        assert " 0 failures" in run(folder / test)
    report = caught(folder / "test_kernels", "thread")
    assert re.search(r"data race.*\n.* by .*:\n +#0 ffkern::cpu::", report), report


def test_shared_library_can_be_unloaded_while_its_threads_sleep(shared: Path) -> None:
    assert " 0 failures" in run(shared / "test_unload", shared / "libffkern.so")


def test_vector_code_stays_in_its_own_symbols(core: Path) -> None:
    """The linker keeps one copy of an inline function: it could be the AVX-512 one."""
    objects = sorted((core / "CMakeFiles").glob("ffkern_isa_*.dir/**/*.cpp.o"))
    assert objects
    for path in objects:
        isa = re.search(r"ffkern_isa_(\w+)\.dir", str(path)).group(1)  # type: ignore[union-attr]
        symbols = [line.split(maxsplit=2) for line in run("nm", "-C", path).splitlines()]
        shared = [s[2] for s in symbols if len(s) == 3 and s[1] in "WVTDBRu" and f"::{isa}::" not in s[2]]
        assert not shared, f"{path.name} for {isa} defines {shared}"


def test_installed_core_can_be_found_and_linked(package: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(ROOT / "tests" / "cpp" / "test_core.cpp", app)
    (app / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(app CXX)\nfind_package(ffkern REQUIRED)\n"
        "add_executable(app test_core.cpp)\ntarget_link_libraries(app ffkern::ffkern)\n"
    )
    configure(app, app / "build", f"-DCMAKE_PREFIX_PATH={package}")
    run(build_tool("cmake"), "--build", app / "build")
    run(app / "build" / "app")


def test_installed_package_has_the_version(core: Path, tmp_path: Path) -> None:
    run(build_tool("cmake"), "--install", core, "--prefix", tmp_path / "prefix")
    version = cached(core, "CMAKE_PROJECT_VERSION")
    major, minor, _ = version.split(".")
    for wanted, found in ((version, True), (f"{major}.{minor}", True), (f"{major}.{int(minor) + 1}", False)):
        (tmp_path / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.24)\nproject(app CXX)\n"
            f'find_package(ffkern {wanted})\nmessage(STATUS "found: ${{ffkern_FOUND}} ${{ffkern_VERSION}}")\n'
        )
        command = [build_tool("cmake"), "-S", tmp_path, "-B", tmp_path / "build", "-G", "Ninja"]
        command += [f"-DCMAKE_MAKE_PROGRAM={build_tool('ninja')}", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"]
        text = run(*command)
        assert (f"found: 1 {version}" in text) == found, text


def test_installed_headers_compile_alone(core: Path, tmp_path: Path) -> None:
    """Those of the CUDA kernels too, which need neither nvcc nor CUDA's own: configured only, nothing is built."""
    options = "-DFFKERN_TORCH=OFF", "-DFFKERN_CUDA=ON", f"-DFFKERN_NVCC={shutil.which('true')}"
    folder = configure(ROOT, tmp_path / "build", *options)
    run(build_tool("cmake"), "--install", folder, "--component", "headers", "--prefix", tmp_path / "prefix")
    include = tmp_path / "prefix" / "include" / "ffkern"
    headers = sorted(include.rglob("*.h"))
    assert {h.parent.name for h in headers} == {"core", "cpu", "cuda"}
    compiler, warnings = cached(core, "CMAKE_CXX_COMPILER"), ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    for header in headers:
        source = tmp_path / "alone.cpp"
        source.write_text(f'#include "{header.relative_to(include)}"\n' * 2)
        run(compiler, "-std=c++20", "-fsyntax-only", *warnings, "-I", include, source)


def test_example_learns_digits(package: Path, tmp_path: Path) -> None:
    digits = load_digits()
    np.savetxt(tmp_path / "digits.csv", np.c_[digits.data, digits.target], "%d", ",")
    folder = configure(ROOT / "examples" / "cpp", tmp_path / "example", f"-DCMAKE_PREFIX_PATH={package}")
    run(build_tool("cmake"), "--build", folder)
    output, again = (run(folder / "digits", tmp_path / "digits.csv", "30", "0", "1") for _ in range(2))
    assert output == again, "the same seed gave two results"
    accuracy = re.search(r"test accuracy: ([\d.]+)", output)
    assert accuracy, output
    assert float(accuracy[1]) >= 0.95


def test_program_in_the_documentation_learns(core: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "cpp.md").read_text(), re.S)
    source = tmp_path / "layer.cpp"
    source.write_text(next(block for block in blocks if "int main" in block))
    library = "-I", ROOT / "csrc", core / "libffkern.a", "-ldl", "-lpthread"
    run(
        cached(core, "CMAKE_CXX_COMPILER"), "-std=c++20", "-Wall", "-Werror", source, *library, "-o", tmp_path / "layer"
    )
    loss = re.fullmatch(r"loss ([\d.]+)\n", run(tmp_path / "layer"))
    assert loss
    assert float(loss[1]) < 0.5  # 1.13 before the first step
