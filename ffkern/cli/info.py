"""``ffkern info`` and ``ffkern bench``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import _info

BFLOAT16 = {
    "amx": "tiles of AMX",
    "avx512_bf16": "dot products of AVX-512",
    "fma": "two float32 multiply-adds a pair: no faster than float32",
    "amx_emulated": "AMX in software: slow, for tests",
}


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Versions, build, and the paths that run on this machine."""
    facts = _info.info()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    build, cpu, cuda = facts["build"], facts["cpu"], facts["cuda"]
    compiler = build.get("compiler", "unknown compiler")
    images = ", ".join(map(str, cuda["images"])) or "none (built without CUDA)"
    lines = {
        "ffkern": facts["version"],
        "torch": f"{facts['torch']} (built against {build.get('torch', 'unknown')}, {compiler})",
        "CPU": (f"{cpu['isa']} in use of {', '.join(cpu['isa_available'])}; {cpu['threads']} threads"),
        "products": "torch's BLAS" if cpu["gemm"] == "blas" else "ffkern's own GEMM",
        "bfloat16": f"{BFLOAT16[cpu['bfloat16']]} ({cpu['bfloat16']} of {', '.join(cpu['bfloat16_available'])})",
        "CUDA kernels": images,
        "CUDA driver": cuda["driver"] or "not found",
        "GPU": "usable by torch" if cuda["device_usable"] else "none usable by torch",
    }
    for name, value in lines.items():
        print(f"{name:14}{value}")
    print(facts["storage"] + ".")


def bench(context: typer.Context) -> None:
    """Benchmarks, with their own options: ffkern bench --help. They need a source checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "run.py").is_file():
        raise ModuleNotFoundError(
            "the benchmarks are not part of the installed package: clone the source repository and "
            "run `make bench` in it"
        )
    sys.path.insert(0, str(root))
    try:
        code = int(importlib.import_module("bench.run").main(context.args))
    finally:
        sys.path.remove(str(root))
    raise typer.Exit(code)
