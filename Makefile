# `make demo` and `make test` need Python 3.11+, g++ and make; everything else goes into $(VENV).
# With RAD_NO_INSTALL=1 nothing is installed: $(PYTHON) has to bring torch, pybind11, ninja and the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
ifdef RAD_NO_INSTALL
PY := $(PYTHON)
CLANG_FORMAT := clang-format
else
PY := $(VENV)/bin/python
CLANG_FORMAT := $(VENV)/bin/clang-format
ENVIRONMENT := $(VENV)/.requirements
endif
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

CXX_SOURCES = $(shell find csrc tests/cpp -path tests/cpp/build -prune -o -type f -regex '.*\.\(h\|cpp\|cuh?\)' -print)
SOURCES = $(shell find csrc -type f) rad_kernels/_version.py
EXTENSION := build/extension.stamp
SETTINGS = $(PY) $(RAD_KERNELS_WITH_CUDA) $(RAD_KERNELS_DEBUG) $(TORCH_CUDA_ARCH_LIST) $(CUDA_HOME)

# $(call quietly,COMMAND): of its output, only our warnings; if it fails, all but the traceback after ninja's message.
quietly = @echo '$(1)'; log=$$(mktemp); trap "rm $$log" EXIT; \
  $(1) >$$log 2>&1 || { sed '/^ninja: build stopped/q' $$log; exit 1; }; grep -E 'csrc/.*warning:' $$log || true

##@ Use

.PHONY: help
help:  ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv:  ## Make the virtual environment, or refresh it after a change of the machine
	$(PYTHON) tools/make_venv.py $(VENV)

$(VENV)/.requirements: requirements/*.txt tools/make_venv.py
	$(PYTHON) tools/make_venv.py $(VENV)

.PHONY: build
build: $(EXTENSION) $(if $(RAD_NO_INSTALL),,$(VENV)/.editable)  ## Compile the extension in place (incremental)

# The stamp carries the time at which the build began, so a source edited meanwhile is compiled next time.
$(EXTENSION): $(SOURCES) setup.py build/settings | $(ENVIRONMENT)
	@touch $@.begun
	$(call quietly,$(PY) setup.py build_ext --inplace)
	@mv $@.begun $@

# After the build, so that pip finds the objects made.
$(VENV)/.editable: pyproject.toml setup.py rad_kernels/_version.py | $(EXTENSION)
	$(PY) -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

build/settings: FORCE
	@mkdir -p $(@D)
	@echo '$(SETTINGS)' | cmp --quiet - $@ || echo '$(SETTINGS)' > $@

.PHONY: FORCE
FORCE:

.PHONY: demo
demo: build  ## Train the paper's network on real digits: exact, small batch and sketches compared
	$(PY) -m rad_kernels demo $(ARGS)

.PHONY: bench
bench: build  ## Time, memory and variance of the sketches beside torch; ARGS="--suite linear --threads 1"
	$(PY) -m rad_kernels bench $(ARGS)

.PHONY: gpu-report
gpu-report:  ## Build, test, sanitize and time on a GPU with $(PYTHON)'s torch; ARGS=--dry-run without one
	$(PYTHON) benchmarks/gpu_report.py $(ARGS)

##@ Check

.PHONY: test
test: $(ENVIRONMENT)  ## Everything CI runs: lint, build, C++/SIMT tests, CUDA compile check, sdist, pytest
	@tools/stage lint $(MAKE) --no-print-directory lint
	@tools/stage build $(MAKE) --no-print-directory build
	@tools/stage simt $(MAKE) --no-print-directory simt
	@tools/stage archs $(MAKE) --no-print-directory archs ARCHS="80 90a 120"
	@tools/stage sdist $(MAKE) --no-print-directory sdist
	@tools/stage pytest $(MAKE) --no-print-directory pytest

.PHONY: lint
lint: $(ENVIRONMENT)  ## ruff, clang-format and mypy; change nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@echo '$(CLANG_FORMAT) --dry-run -Werror csrc tests/cpp'; $(CLANG_FORMAT) --dry-run -Werror $(CXX_SOURCES)
	$(PY) -m mypy

.PHONY: format
format: $(ENVIRONMENT)  ## Let ruff and clang-format rewrite the sources
	@echo '$(CLANG_FORMAT) -i csrc tests/cpp'; $(CLANG_FORMAT) -i $(CXX_SOURCES)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

.PHONY: pytest
pytest: build  ## Python tests; ARGS="-k name" selects
	OMP_NUM_THREADS=1 $(PY) -m pytest $(if $(RAD_NO_INSTALL),,-n $(JOBS) --dist worksteal) $(ARGS)

.PHONY: simt
simt: $(ENVIRONMENT)  ## C++ tests: every kernel executed on the host, with race and bounds checks
	include=$$($(PY) tools/cuda_include.py) && $(MAKE) -C tests/cpp -j$(JOBS) all test CUDA_INC="$$include"

##@ CUDA without a GPU, older torch

.PHONY: archs
archs: $(ENVIRONMENT)  ## Compile the kernels for every architecture; fails on spills, other registers, dearer loops
	$(MAKE) --no-print-directory -f tools/archs.mk -j$(JOBS) PYTHON=$(PY) $(if $(ARCHS),ARCHS="$(ARCHS)")

.PHONY: resources
resources: build  ## Record what archs finds, for all architectures, in docs/resources.md and tools/sass_budget.json
	$(MAKE) --no-print-directory -f tools/archs.mk -j$(JOBS) PYTHON=$(PY) WRITE=--write
	$(PY) tools/readme_tables.py

.PHONY: cross
cross: $(ENVIRONMENT)  ## Build the CUDA backend even if torch is CPU-only, import it and check the binary
	$(call quietly,RAD_KERNELS_WITH_CUDA=1 $(PY) setup.py build --build-lib build/cross)
	PYTHONPATH=build/cross $(PY) -P -c "import rad_kernels; print(rad_kernels.show_config())"
	PYTHONPATH=build/cross $(PY) -P -m pytest -q tests/test_build.py

.PHONY: oldest
oldest: $(ENVIRONMENT)  ## Compile csrc/ops against the headers of the oldest supported torch (downloads 0.5 GB)
	$(PY) tools/oldest_torch.py

##@ Ship

.PHONY: readme
readme: build  ## Write the generated tables of README.md and docs/ anew from docs/results
	$(PY) tools/readme_tables.py

.PHONY: docs
docs: readme  ## Write docs/api.md anew from the docstrings, and the generated tables
	$(PY) tools/api_reference.py

.PHONY: sdist
sdist: $(ENVIRONMENT)  ## Build sdist and wheel, install the wheel elsewhere and import it
	$(PY) tools/check_sdist.py

.PHONY: clean
clean:  ## Remove what builds and tests left (the virtual environment stays)
	rm -rf build dist *.egg-info rad_kernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	if [ -f tests/cpp/Makefile ]; then $(MAKE) -C tests/cpp clean; fi
