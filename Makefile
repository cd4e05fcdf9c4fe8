# make demo | test | mutation | lint | format | bench | gpu-check | clean. Each sets up what it needs: .venv, the pinned
# requirements, the extension. PYTHON=/path/to/python uses an interpreter that you prepared instead; nothing but ffkern is
# installed there.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

ifeq ($(origin PYTHON),undefined)
  PYTHON := .venv/bin/python
  STAMPS := .venv/.stamps
  MANAGED := 1
else
  STAMPS := build/stamps$(subst /,-,$(PYTHON))
endif
FFKERN_CUDA ?= auto
export FFKERN_CUDA
RUN = SCRIPTS="$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')" && PATH="$$SCRIPTS:$$PATH" &&

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml ffkern/_version.py
CXX_FILES := $(shell find csrc examples tests/cpp tests/emulated tests/ptxsim -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CONFIG = FFKERN_CUDA=$(FFKERN_CUDA) ARCHS=$(FFKERN_CUDA_ARCHS) WERROR=$(FFKERN_WERROR) CUDA=$(CUDA_HOME):$(CUDA_PATH) CXX=$(CXX) PYTHON=$(PYTHON)

.PHONY: help setup demo test mutation lint format bench gpu-check clean force
help:
	@echo "make demo       train on handwritten digits, next to eager PyTorch"
	@echo "make test       all tests (CUDA kernels on a software driver)"
	@echo "make mutation   would the tests notice? mistakes in CUDA kernels and CPU kernels"
	@echo "make lint       ruff, mypy, clang-format; make format repairs"
	@echo "make bench      benchmarks"
	@echo "make gpu-check  on a machine with a GPU: verifies and measures everything (docs/gpu.md)"
	@echo "make clean      removes build products; .venv stays"

setup: ffkern/_C.so $(STAMPS)/installed

demo: setup
	$(RUN) ffkern train --dataset digits --compare-eager

# The tests compile kernels too: nvcc's folder goes on PATH.
test: setup
	$(RUN) NVCC="$$($(PYTHON) setup.py -q find_nvcc || true)" && \
	  PATH="$${NVCC:+$$(dirname "$$NVCC"):}$$PATH" $(PYTHON) -m pytest $(PYTEST_ARGS)

# An hour; goes on where it was stopped.
mutation: setup
	$(RUN) NVCC="$$($(PYTHON) setup.py -q find_nvcc || true)" && \
	  export PATH="$${NVCC:+$$(dirname "$$NVCC"):}$$PATH" OMP_NUM_THREADS=1 PYTHONPATH=tests && \
	  $(PYTHON) -m mutation cuda && $(PYTHON) -m mutation cpu

bench: setup
	$(RUN) $(PYTHON) -m bench.run $(BENCH_ARGS)

# Exit status 2 from Python: no GPU, no CUDA build of torch, or no CUDA kernels in this build.
gpu-check: setup
	$(RUN) $(PYTHON) tests/gpu_check.py

lint: $(STAMPS)/requirements
	$(RUN) ruff check . && ruff format --check . && $(PYTHON) -m mypy && clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMPS)/requirements
	$(RUN) ruff check --fix-only . && ruff format . && clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist ffkern.egg-info ffkern/*.so .pytest_cache .mypy_cache .ruff_cache

# ---- set-up steps; each is repeated only when what it depends on has changed

ifdef MANAGED
.venv/bin/python:
	python3 -m venv .venv

$(STAMPS)/requirements: requirements-dev.txt requirements-cuda.txt | .venv/bin/python
	$(PYTHON) -m pip install -q -r requirements-dev.txt
	@if [ "$(FFKERN_CUDA)" != 0 ] && ! $(PYTHON) setup.py -q find_nvcc >/dev/null; then \
	  echo "no nvcc on this machine: installing the CUDA compiler from PyPI"; \
	  $(PYTHON) -m pip install -q -r requirements-cuda.txt; fi
	@mkdir -p $(@D) && touch $@
else
$(STAMPS)/requirements:
	@mkdir -p $(@D) && touch $@
endif

$(STAMPS)/config: force
	@mkdir -p $(@D); echo '$(CONFIG)' | cmp -s - $@ || echo '$(CONFIG)' > $@

ffkern/_C.so: $(SOURCES) $(STAMPS)/requirements $(STAMPS)/config
	$(PYTHON) setup.py -q build_ext --inplace
	@touch $@

$(STAMPS)/installed: pyproject.toml setup.py ffkern/_version.py | ffkern/_C.so
	$(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@
