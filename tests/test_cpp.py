"""The core without torch: standalone build, C++ test, installation, symbols of the objects."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str) -> str:
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    assert path, f"{name} is needed: pip install {name}"
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, *options: str) -> Path:
    run(
        *(tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", "-DFFKERN_TORCH=OFF"),
        *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", *options),
    )
    run(tool("cmake"), "--build", folder, "-j", "2")
    return folder


@pytest.fixture(scope="session")
def core() -> Path:
    return build(ROOT / "build" / "core", "-DFFKERN_WERROR=ON")


def test_core(core: Path) -> None:
    assert " 0 failures" in run(core / "test_core")


def test_core_with_sanitizers() -> None:
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    folder = build(
        ROOT / "build" / "core-sanitizers",
        f"-DCMAKE_CXX_FLAGS={flags}",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    )
    assert " 0 failures" in run(folder / "test_core")


def test_vector_code_stays_in_its_own_symbols(core: Path) -> None:
    """The linker keeps one copy of an inline function: it could be the AVX-512 one."""
    objects = sorted((core / "CMakeFiles").glob("ffkern_isa_*.dir/**/*.cpp.o"))
    assert objects
    for path in objects:
        isa = re.search(r"ffkern_isa_(\w+)\.dir", str(path)).group(1)  # type: ignore[union-attr]
        symbols = [line.split(maxsplit=2) for line in run("nm", "-C", path).splitlines()]
        shared = [s[2] for s in symbols if len(s) == 3 and s[1] in "WVTDBRu" and f"::{isa}::" not in s[2]]
        assert not shared, f"{path.name} for {isa} defines {shared}"


def test_installed_core_can_be_found_and_linked(core: Path, tmp_path: Path) -> None:
    run(tool("cmake"), "--install", core, "--prefix", tmp_path / "prefix")
    app = tmp_path / "app"
    app.mkdir()
    shutil.copy(ROOT / "tests" / "cpp" / "test_core.cpp", app)
    (app / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(app CXX)\nfind_package(ffkern REQUIRED)\n"
        "add_executable(app test_core.cpp)\ntarget_link_libraries(app ffkern::ffkern)\n"
    )
    run(
        *(tool("cmake"), "-S", app, "-B", app / "build", "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"),
    )
    run(tool("cmake"), "--build", app / "build")
    run(app / "build" / "app")
