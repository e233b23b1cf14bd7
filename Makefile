# Rondo. `make help` lists what can be made; `make demo` is the place to start.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test simulate test-python check build bench bench-learning bench-imaging bench-transfer bench-round clean-demo libtorch libtorch-cpu libtorch-cuda fmt clippy doc deny advisories unused provision-test fuzz

# Cargo has every core already, and what is timed must be alone.
.NOTPARALLEL:

PYTHON ?= python3
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET_DIR)/debug
BENCH_VENV := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rondo/bench-venv
IMAGING_VENV := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rondo/bench-imaging-venv
# surface-distance needs names of scipy that version 2 takes away.
IMAGING_PEERS := 'SimpleITK==2.5.*' surface-distance==0.1 'scipy>=1.13,<2' numpy
# Tools of others that tests hold our files against; model-signing 1.1.1 imports pyOpenSSL without asking for it. What the system's Python has stays in sight.
TEST_VENV := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rondo/test-venv
TEST_PEERS := model-signing==1.1.1 pyOpenSSL cryptography
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rondo/tools
DENY := $(TOOLS)/cargo-deny-0.20.2/bin/cargo-deny
MACHETE := $(TOOLS)/cargo-machete-0.9.2/bin/cargo-machete
FUZZ := $(TOOLS)/cargo-fuzz-0.13.2/bin/cargo-fuzz
FUZZ_SECONDS ?= 600
FUZZ_IMAGES := nifti cohort_toml dicom rtstruct segmentation
FUZZ_WIRE := envelope manifest card receipt passport plan plan_toml record chunk_table checkpoint messages
FUZZ_TARGETS ?= $(FUZZ_IMAGES) $(FUZZ_WIRE)

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Three centres on this machine pass a model around: set-up, round, evaluation, passport
	$(BIN)/rondo lab demo --workdir demo

clean-demo: ## Remove what `make demo` made (folder demo)
	rm -rf demo

build: libtorch ## The programs rondo, rondo-node and rondo-trainer, in target/debug
	cargo build --locked --workspace --bins

test: build provision-test ## Every test
	@cargo test --locked --workspace --no-fail-fast 2>&1 | awk ' \
	  { print; fflush() } \
	  /SKIPPED [^ ]+: / { skipped++ } \
	  /^test result:/ { suites++; passed += $$4; failed += $$6; ignored += $$8 } \
	  END { printf "\n%d tests passed, %d failed, %d ignored, in %d programs, %d skipped parts\n", passed, failed, ignored, suites, skipped }'

SCHEDULES ?= 100000

simulate: ## SCHEDULES=100000 new seeded schedules of a round in virtual time (RONDO_SIM_SEED=7 runs that one)
	RONDO_SIM_SCHEDULES=$(SCHEDULES) cargo test --locked -p rondo --lib simulator::tests::no_ -- --nocapture

test-python: ## A Python for tests with model-signing and cryptography, once (then: export RONDO_TEST_PYTHON=…/test-venv/bin/python)
	@if ! $(TEST_VENV)/bin/python -c 'import model_signing, cryptography' 2>/dev/null; then \
	  echo "test-python: getting $(TEST_PEERS) once, into $(TEST_VENV)"; \
	  $(PYTHON) -m venv --system-site-packages $(TEST_VENV) && $(TEST_VENV)/bin/pip install --quiet $(TEST_PEERS) || \
	    echo "test-python: model-signing or cryptography CANNOT BE HAD (see above), so its tests are skipped"; \
	fi
	@echo "test-python: $(TEST_VENV)/bin/python"

check: fmt clippy doc deny advisories unused ## Format, lints, documentation, licences, layers, unused dependencies

fmt:
	cargo fmt --all --check

clippy: libtorch
	cargo clippy --locked --workspace --all-targets -- -D warnings

doc: libtorch
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

deny: $(DENY)
	$(DENY) --locked --workspace check -A unused-wrapper bans licenses sources

# Known vulnerabilities stand in a database on the network; a machine without it is told so.
advisories: $(DENY)
	@if timeout 120 $(DENY) --locked fetch db; then \
	  $(DENY) --locked --workspace check --disable-fetch advisories; \
	else \
	  echo "advisories: NOT CHECKED, since the advisory database cannot be reached from here"; \
	fi

unused: $(MACHETE)
	$(MACHETE)

provision-test:
	cd deploy/libtorch && $(PYTHON) -B -m unittest

# What is compared with is for the comparison only: nothing that is built or tested needs it.
bench: build bench-learning bench-imaging bench-transfer bench-round ## How fast this machine trains, segments, reads, corrects, judges, transfers and goes round, in turns with public tools

bench-learning: build
	@if ! $(BENCH_VENV)/bin/python -c 'import torch; assert torch.__version__.startswith("2.9.0")' 2>/dev/null; then \
	  echo "bench: getting PyTorch 2.9.0 for the comparison, once, into $(BENCH_VENV)"; \
	  $(PYTHON) -m venv $(BENCH_VENV) && $(BENCH_VENV)/bin/pip install --quiet torch==2.9.0 numpy || \
	    echo "bench: PyTorch 2.9.0 CANNOT BE HAD (see above), so there is nothing to compare with"; \
	fi
	@peer=(--peer $(BENCH_VENV)/bin/python); \
	$(BENCH_VENV)/bin/python -c 'import torch' 2>/dev/null || peer=(); \
	for what in "step --precision fp32" "step --precision bf16" infer; do \
	  $(BIN)/rondo-trainer bench $$what "$${peer[@]}"; \
	done; \
	$(BIN)/rondo-trainer bench sample

# `--workspace` so that what `make build` or `make test` built serves here too.
bench-imaging: ## Only its part about images: N4, evaluation, DICOM, preprocessing (BENCH='--dicom FOLDER --head FILE')
	@if ! $(IMAGING_VENV)/bin/python -c 'import SimpleITK, surface_distance; assert SimpleITK.Version.VersionString().startswith("2.5")' 2>/dev/null; then \
	  echo "bench: getting SimpleITK 2.5 and surface-distance for the comparison, once, into $(IMAGING_VENV)"; \
	  $(PYTHON) -m venv $(IMAGING_VENV) && $(IMAGING_VENV)/bin/pip install --quiet $(IMAGING_PEERS) || \
	    echo "bench: SimpleITK 2.5 or surface-distance CANNOT BE HAD (see above), so there is nothing to compare with"; \
	fi
	@peer=(--peer $(IMAGING_VENV)/bin/python); \
	$(IMAGING_VENV)/bin/python -c 'import numpy' 2>/dev/null || peer=(); \
	cargo bench --locked --quiet --profile dev --workspace --bench imaging -- "$${peer[@]}" $(BENCH)

# The daemon as it is shipped: in the daily profile the libraries below it are not optimised.
bench-transfer: ## Only its part about transfer: 1 GiB between two daemons, in turns with bare TLS, and over a shaped link where permitted (BENCH='--size 64MiB --json')
	cargo build --locked --quiet --release -p rondo-node
	@$(TARGET_DIR)/release/rondo-node bench transfer $(BENCH)
	@$(TARGET_DIR)/release/rondo-node bench transfer --link-mbit-s 1000 $(BENCH)
	@$(TARGET_DIR)/release/rondo-node bench transfer --link-mbit-s 1000 --rtt-ms 64 $(BENCH)

bench-round: ## Only its part about rounds: 3 sites x 4 cycles of 2.6 MB without training (BENCH='--repeats 10 --json')
	cargo build --locked --quiet --release -p rondo-node
	@$(TARGET_DIR)/release/rondo-node bench round $(BENCH)

# Bounds: node/imaging/fuzz/README.md and proto/fuzz/README.md. The folder of the sources has a compiler
# of its own in rust-toolchain.toml, so the nightly one is named.
fuzz: $(FUZZ) ## Readers of images, messages and journals against damage: FUZZ_SECONDS=600 for each of FUZZ_TARGETS (needs Rust nightly)
	@rustc +nightly --version >/dev/null 2>&1 || { echo "fuzz: needs a nightly compiler: rustup toolchain install nightly"; exit 1; }
	@$(if $(filter $(FUZZ_IMAGES),$(FUZZ_TARGETS)),$(call fuzz_in,node/imaging/fuzz,$(filter $(FUZZ_IMAGES),$(FUZZ_TARGETS))),:)
	@$(if $(filter $(FUZZ_WIRE),$(FUZZ_TARGETS)),$(call fuzz_in,proto/fuzz,$(filter $(FUZZ_WIRE),$(FUZZ_TARGETS))),:)

define fuzz_in
	cd $(1) && export PATH="$(dir $(FUZZ)):$$PATH" && \
	cargo +nightly fuzz build --fuzz-dir . && \
	"$${CARGO_TARGET_DIR:-target}"/*/release/seeds corpus && \
	for target in $(2); do \
	  words=(); one=512; all=1024; \
	  case "$$target" in dicom|rtstruct|segmentation) words=(-dict=dicom.dict); one=1100; all=3072;; esac; \
	  echo "fuzz: $$target for $(FUZZ_SECONDS) s"; \
	  cargo +nightly fuzz run --fuzz-dir . "$$target" -- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 \
	    -rss_limit_mb=$$all -malloc_limit_mb=$$one -timeout=10 -print_final_stats=1 "$${words[@]}"; \
	done
endef

libtorch: ## libtorch 2.9.0 from LIBTORCH, the cache, or the network (the kit linked now, else CPU)
	$(call provision,)

libtorch-cpu: ## The CPU libraries of libtorch (500 MB)
	$(call provision,cpu)

libtorch-cuda: ## The CUDA libraries of libtorch (6 GB)
	$(call provision,cuda)

# Cargo does not see that the link leads elsewhere, so what was linked before is cleaned then.
define provision
	@before=$$(readlink .libtorch || true); \
	$(PYTHON) -B deploy/libtorch/provision.py $(1) --link .libtorch; \
	if [ -n "$$before" ] && [ "$$before" != "$$(readlink .libtorch)" ] && [ -d $(TARGET_DIR) ]; then \
	  cargo clean --locked --quiet -p torch-sys -p burn-tch -p rondo-learn -p rondo-trainer; \
	fi
endef

# Tools of `make check`, each built once in the user's cache. Debug builds: they take a third of the time.
$(TOOLS)/%/bin/cargo-deny $(TOOLS)/%/bin/cargo-machete $(TOOLS)/%/bin/cargo-fuzz:
	@echo "building $* once into $(TOOLS), which takes some minutes"
	tool='$*'; env -u CARGO_TARGET_DIR cargo install --quiet --locked --debug --root $(TOOLS)/$* "$${tool%-*}@$${tool##*-}"
