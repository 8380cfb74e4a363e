# make check     set up, then lint, types and the quick tests
# make test      set up, then every check that CI runs
# make profile   set up, then measure what fusing early, late or through bottlenecks costs here
# make bench     set up, then measure everything; ENV=name of the machine, RUNS=3
# make docs      set up, then build the documentation into build/site
# make setup     only set up; PYTHON=python3.12 chooses the interpreter, VENV=... the place

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INPUTS := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

# A worker for each core, one thread in each; tests that share a build stay in one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q
PARALLEL := -n auto --dist loadgroup

ENV ?= local
RUNS ?= 3

.PHONY: check test profile bench docs setup lint types quick interpret unit smoke sanitize clean

check: lint types quick

test: lint types interpret unit smoke docs

profile: setup
	$(BIN)/mbt-fast profile --json profile.json --html profile.html

# Several processes, because each finds other memory; they keep what they free, because page faults
# otherwise double some times. Then: python -m benchmarks.report --readme
bench: setup
	mkdir -p benchmarks/results/$(ENV)
	for run in $$(seq $(RUNS)); do \
		MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 $(BIN)/pytest -q benchmarks \
			--benchmark-json=benchmarks/results/$(ENV)/$$run.json || exit 1; \
	done

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -d build/site

setup: $(STAMP)

# Torch first, and constrained: another package that asks for it would otherwise choose the version.
# timm alone: its torchvision would bring another torch.
$(STAMP): $(INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q 'setuptools>=77' 'pybind11>=2.13' 'ninja>=1.11'
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps timm
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

quick: setup
	$(PYTEST) $(PARALLEL) -m "not slow"

unit: setup
	$(PYTEST) $(PARALLEL)

# A process of its own: under TRITON_INTERPRET=1 a kernel is no longer something to compile.
interpret: setup
	TRITON_INTERPRET=1 $(PYTEST) $(PARALLEL) -m "not aot" -k "triton or opcheck" \
		tests/ops tests/kernels tests/layers

# Every benchmark once, on tiny shapes, without timing.
smoke: setup
	$(PYTEST) benchmarks --benchmark-disable

# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, their scratch full of NaN.
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -DMBT_FAST_POISON
SANITIZERS = $(foreach name,asan ubsan,$(shell $(CXX) -print-file-name=lib$(name).so))

sanitize: setup
	CXXFLAGS="$(SANITIZE)" MBT_FAST_NATIVE=1 $(BIN)/python -m pip install -q --no-build-isolation \
		--no-deps --upgrade --target build/sanitize .
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		PYTHONPATH=build/sanitize $(BIN)/pytest -q -k "not sdpa and not triton" \
		tests/kernels/test_bottleneck_attention_cpu.py tests/ops/test_bottleneck_attention.py tests/ops/test_layer_ops.py \
		tests/ops/test_residual_add.py tests/ops/test_linear.py

clean:
	rm -rf $(VENV) build dist *.egg-info mbt_fast/*.so profile.json profile.html .mypy_cache .pytest_cache .ruff_cache
