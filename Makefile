# plastic-host. `make demo` and `make test` set up whatever is missing first; docs/setup.md says how.

CARGO ?= cargo
MODEL := smollm2-135m
HOST  := target/release/plastic-host
SETUP := target/setup/setup/plastic-setup
READY := target/setup/system-checked

# Everything here, and the README, names target/release; plugins choose their own target.
unexport CARGO_TARGET_DIR CARGO_BUILD_TARGET CARGO_BUILD_TARGET_DIR

.PHONY: check-kernels help demo test setup build plugins model ready bench bench-quick bench-counts bench-plugins bench-packs bench-compress bars lint fuzz clean distclean

help:
	@echo 'make demo         run the sleep/wake loop on a real model ($(MODEL)): accepted, rejected, woken again'
	@echo 'make test         run every test'
	@echo 'make setup        check this machine again and prepare it; MLX_BACKEND=cuda picks the CUDA build'
	@echo 'make build        build the program: $(HOST)'
	@echo 'make plugins      build plugins/*.wasm'
	@echo 'make bench        compare with mlx-lm and llama.cpp, side by side (bench-quick: a shorter run)'
	@echo 'make bench-counts count instructions of a plugin call and of the step loop (needs valgrind)'
	@echo 'make bench-plugins what loading and calling a plugin costs'
	@echo 'make bench-packs  training a pack beside mlx-lm: speed and memory'
	@echo 'make bench-compress  decomposing a model beside NumPy: speed and memory'
	@echo 'make bars         compress by every method and compare perplexities; BARS=--quick for two budgets'
	@echo 'make fuzz         attack the plugin boundary, FUZZ_SECONDS=$(FUZZ_SECONDS) for each target (needs cargo-fuzz)'
	@echo 'make check-kernels check the CPU kernels against plain arithmetic under sanitizers, CHECK_CASES=$(CHECK_CASES)'
	@echo 'make lint         formatting, clippy, licences'
	@echo 'make clean        delete what was built (distclean: MLX in .mlx too)'

# --- the main job -----------------------------------------------------------------------------

demo: plugins model
	@rm -rf runs/demo runs/demo-plain
	@echo; echo '== 1. The energy policy puts rank to sleep; the evaluator judges =='
	$(HOST) --policy plugins/energy.wasm --out runs/demo
	@echo; echo '== 2. The same with the plain metric: rejected and rolled back (exit code 3) =='
	$(HOST) --policy plugins/energy.wasm --policy-opt metric=plain --out runs/demo-plain || test $$? -eq 3
	@echo; echo '== 3. Everything wakes: the base again, bit for bit =='
	$(HOST) undo runs/demo --to 0

test: plugins model
	@$(SETUP) test

bench: plugins model
	python3 -B tests/bench/bench.py

bench-quick: plugins model
	python3 -B tests/bench/bench.py --quick

# valgrind is no part of what the program needs: looked for where it is used.
bench-counts: plugins model
	python3 -B tests/bench/counts.py

bench-plugins: plugins model
	python3 -B tests/bench/plugins.py

bench-packs: model
	python3 -B tests/bench/packs.py

bench-compress: plugins model
	python3 -B tests/bench/compress.py

bars: plugins model
	python3 -B tests/bench/bars.py $(BARS)

# --- set-up -----------------------------------------------------------------------------------

# Asked for by name, the machine is checked again; the other targets check it once.
setup: $(SETUP)
	@$(SETUP) system
	@touch $(READY)
	@$(SETUP) mlx

ready: $(READY)
	@$(SETUP) mlx

$(READY): $(SETUP)
	@$(SETUP) system
	@touch $@

build: ready
	@$(CARGO) build --release

plugins: build
	@$(SETUP) plugins

model: build
	@$(HOST) model fetch $(MODEL)

# In a directory of its own, without the environment's compiler flags: never built twice.
$(SETUP): host/setup/Cargo.toml $(wildcard host/setup/src/*.rs host/setup/native/* host/setup/wheels/*)
	@command -v $(CARGO) >/dev/null || { echo 'cargo not found: install Rust from https://rustup.rs, then open a new shell' >&2; exit 1; }
	@echo 'Building the set-up program'
	@unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS; $(CARGO) build --quiet --profile setup -p plastic-setup --target-dir target/setup
	@touch $@

# --- the rest ---------------------------------------------------------------------------------

lint: ready
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo 'cargo-deny is not installed: licences and advisories were not checked (cargo install cargo-deny)'; fi

FUZZ_SECONDS ?= 30
FUZZ_TARGETS ?= component options plan c_tables wire texts

# The sanitizers are there in every toolchain, but only this variable lets a released one use them.
# What is found is kept apart from what is in fuzz/corpus, so that nothing under version control changes.
fuzz: ready
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo 'cargo-fuzz not found: cargo install cargo-fuzz' >&2; exit 1; }
	@for t in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/target/found/$$t; \
	  RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$t fuzz/target/found/$$t fuzz/corpus/$$t -- \
	    -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=20 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

# The CPU kernels against plain arithmetic, under sanitizers: `make test` runs a few cases, this as many as you like.
CHECK_CASES ?= 2000
CHECK_SEED ?= 1
check-kernels:
	host/native/check/run.sh target/check $(CHECK_CASES) $(CHECK_SEED)

clean:
	rm -rf target fuzz/target plugins/*.wasm

distclean: clean
	rm -rf .mlx
