# make profile   set up a virtual environment and run the main job
# make test      set up, and run every check that CI runs
# make setup     only set up; PYTHON=python3.12 chooses the interpreter, VENV=... the place

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNEL_TESTS := tests/ops tests/kernels/test_triton_kernels.py tests/kernels/test_triton_layer.py tests/layers
INPUTS := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

.PHONY: profile test setup lint types unit interpret bench sanitize clean

profile: setup
	$(BIN)/mbt-fast profile --json profile.json --html profile.html

test: setup lint types interpret unit

setup: $(STAMP)

# Torch first, and constrained: another package that asks for it would otherwise choose the version.
$(STAMP): $(INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q 'setuptools>=77' 'pybind11>=2.13' 'ninja>=1.11'
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

# Two processes: under TRITON_INTERPRET=1 a kernel is no longer something to compile.
interpret:
	TRITON_INTERPRET=1 $(BIN)/pytest -q -k "triton or opcheck" $(KERNEL_TESTS)

unit:
	$(BIN)/pytest -q
	$(BIN)/pytest -q benchmarks --benchmark-disable

# Several processes, because each finds other memory; they keep what they free, because page faults
# otherwise double some times. Then: python -m benchmarks.report --readme
ENV ?= local
RUNS ?= 3
bench: setup
	mkdir -p benchmarks/results/$(ENV)
	for run in $$(seq $(RUNS)); do \
		MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 $(BIN)/pytest -q benchmarks \
			--benchmark-json=benchmarks/results/$(ENV)/$$run.json || exit 1; \
	done

# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, their scratch full of NaN.
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -DMBT_FAST_POISON
SANITIZERS = $(foreach name,asan ubsan,$(shell $(CXX) -print-file-name=lib$(name).so))

sanitize: setup
	CXXFLAGS="$(SANITIZE)" MBT_FAST_NATIVE=1 $(BIN)/python -m pip install -q --no-build-isolation \
		--no-deps --upgrade --target build/sanitize .
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		PYTHONPATH=build/sanitize $(BIN)/pytest -q -k "not sdpa and not triton" \
		tests/kernels/test_cpu_kernels.py tests/ops/test_bottleneck_attention.py tests/ops/test_layer_ops.py \
		tests/ops/test_residual_add.py

clean:
	rm -rf $(VENV) build dist *.egg-info mbt_fast/*.so profile.json profile.html
