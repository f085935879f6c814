# Everything a newcomer needs: `make demo`, `make test`. Both set up whatever is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
NATIVE := build/native
STOCK  := build/stock
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
# Processes of the Python tests. Each of them loads PyTorch, about 1 GB, so a large machine does not start one per core.
TEST_JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

# ccache compares paths relative to here, so that a second clone finds the first one's objects.
export CCACHE_BASEDIR := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup native stock tools test test-native test-python check demo wheel wheels sanitize test-arm test-wheel-kernels torture bench-native train-tiny en-fr en-fr-blocks study docs pictures clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

# The bindings are built without their own llama.cpp; no pip cache, so that no other project gets that build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "bitexport needs Python 3.10 or newer; $(PYTHON) is older. Try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch numpy
	CMAKE_ARGS=-DLLAMA_BUILD=OFF $(BIN)/pip install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints.txt llama-cpp-python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --config-settings wheel.cmake=false --editable '.[dev]'
	touch $@

# Configured every time, which takes a second or two, so that a failed first try or another BITEXPORT_LLAMA_CPP needs no
# manual repair. Uses Ninja if it is installed; that is decided once, when the tree is new.
configure = cmake -S native -B $(1) -Wno-dev --log-level=WARNING \
	$$(test -f $(1)/CMakeCache.txt || ! command -v ninja >/dev/null || echo -G Ninja) \
	"-DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python" "-DBITEXPORT_DOWNLOAD_DIR=$(CURDIR)/build/download" \
	"-DBITEXPORT_LLAMA_CPP=$(abspath $(BITEXPORT_LLAMA_CPP))" $(2)

setup: $(VENV)/.installed native ## Install everything into .venv and build/native

native: $(VENV)/.installed ## Build libllama and llama-server with I2_S
	@$(call configure,$(NATIVE))
	@cmake --build $(NATIVE) --parallel $(JOBS)

stock: native ## Build the same llama.cpp unpatched, for tests to compare with
	@$(call configure,$(STOCK),-DBITEXPORT_STOCK=ON)
	@cmake --build $(STOCK) --parallel $(JOBS)

tools: native ## Build llama-cli, llama-bench, llama-perplexity, llama-quantize with I2_S
	@$(call configure,$(NATIVE),-DBITEXPORT_TOOLS=ON)
	cmake --build $(NATIVE) --parallel $(JOBS) --target tools

test: test-native test-python ## Run every test

test-native: native
	cd $(NATIVE) && ctest --output-on-failure

test-python: native stock
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

check: $(VENV)/.installed ## Lint, type-check, check the layers, compare generated tables with the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/support_table.py --check
	$(BIN)/python scripts/model_catalogue.py --check
	$(BIN)/python scripts/foreign_files.py --check
	$(BIN)/python scripts/config_reference.py --check
	$(BIN)/python scripts/cli_reference.py --check
	$(BIN)/python scripts/architecture_diagram.py --check

demo: setup ## From a checkpoint to a service: convert, prove, bench, run, serve the shipped ones
	@$(BIN)/python examples/demo.py

sanitize: ## Run the kernel tests under address and undefined-behaviour sanitizers
	cmake -S native/kernels -B build/sanitized -DTERNARY_SANITIZE=ON
	cmake --build build/sanitized --parallel $(JOBS)
	cd build/sanitized && ctest --output-on-failure

# One CPU for each ARM tier: its features decide which tiers are tested on it, and the last of them must be chosen.
test-arm: ## Run the kernel tests as 64-bit ARM, cross-compiled and emulated
	@missing=""; \
	command -v aarch64-linux-gnu-g++ >/dev/null || missing="$$missing g++-aarch64-linux-gnu"; \
	command -v qemu-aarch64 >/dev/null || missing="$$missing qemu-user"; \
	test -z "$$missing" || { echo "make test-arm needs these Debian packages:$$missing"; \
		echo "Install them, as root: apt-get install --no-install-recommends$$missing"; exit 1; }
	cmake -S native/kernels -B build/arm --toolchain $(CURDIR)/native/kernels/cmake/aarch64-linux-gnu.cmake \
		"-DTERNARY_EMULATED_CPUS=cortex-a53=neon;cortex-a76=dotprod;max=i8mm"
	cmake --build build/arm --parallel $(JOBS)
	cd build/arm && ctest --output-on-failure --parallel $(JOBS)

# The compiler is installed by pip, into build/wheels. ARM's tests need what `make test-arm` needs.
test-wheel-kernels: $(VENV)/.installed ## Run the kernel tests as the wheels' compiler, Zig's clang, builds them
	$(BIN)/python scripts/wheel_kernels.py $(ARCHITECTURES)

# The first build takes some minutes: libllama with sanitizers. KINDS and WITHOUT choose among the modules of
# tests/torture/kinds; CASES=1 START=N does one case again; RESUME=1 continues where the last run with a seed stopped.
FUZZ    := build/fuzz
SECONDS ?= 600
SEED    ?= 1
torture: native ## Try to kill, fill, hang and fool bitexport: SECONDS=600 JOBS=2 SEED=1 KINDS='gguf_files ...'
	@$(call configure,$(FUZZ),-DBITEXPORT_SANITIZE=ON)
	@cmake --build $(FUZZ) --parallel $(JOBS) --target fuzz_gguf
	$(BIN)/python -m tests.torture --seconds $(SECONDS) --jobs $(JOBS) --seed $(SEED) $(if $(KINDS),--kinds $(KINDS)) \
		$(if $(WITHOUT),--without $(WITHOUT)) $(if $(CASES),--cases $(CASES)) $(if $(START),--start $(START)) \
		$(if $(RESUME),--resume)

bench-native: native ## Time the kernels against the machine's own peaks (ARGS='--tier avx2 --model 2b4t' narrows it)
	$(NATIVE)/kernels/ternary/bench_ternary --json $(NATIVE)/bench-native.json $(ARGS)

train-tiny: $(VENV)/.installed ## Train the shipped checkpoint again (an hour or two on 2 cores)
	$(BIN)/bitexport train examples/tiny-python/train.toml --stage pretrain

# Continues where it stopped. Without French catalogs on the machine it fails with a message.
en-fr: setup ## Distil English to French, three ways and two seeds, and measure it (two hours on 2 cores)
	$(BIN)/python examples/en-fr/reproduce.py $(ARGS)

en-fr-blocks: setup ## Train block diffusion from the shipped English-French student, and measure every rule
	$(BIN)/python examples/en-fr/blocks.py $(ARGS)

# Continues where it stopped; --table-only writes the tables of what there is, --minutes 60 ends after an hour.
study: setup ## Compare students with a teacher that has seen ten times as much (some hours on 2 cores)
	$(BIN)/python examples/study/study.py $(ARGS)

wheel: $(VENV)/.installed ## Build a wheel that carries the native libraries
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

wheels: $(VENV)/.installed ## Build wheels for every Linux on x86-64 and 64-bit ARM, whatever the CPU
	$(BIN)/python scripts/build_wheels.py $(ARCHITECTURES)
	$(BIN)/python scripts/try_wheel.py dist/bitexport-*-manylinux_*.whl

# Without the network. Broken links, and pages outside the navigation, are errors.
docs: $(VENV)/.installed ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "Open build/site/index.html"

pictures: setup ## Record the documentation's terminal sessions, plots and browser pictures again
	$(BIN)/python scripts/site/record.py $(ARGS)

clean: ## Remove everything that was built or installed here
	rm -rf $(VENV) build dist
