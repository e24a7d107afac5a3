# Two commands for a fresh machine: `make demo` (set-up and the main job) and `make test` (set-up and the tests).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check
demo: .venv/run.stamp
	$(BIN)/anchoreval run --model anchor-tiny --tasks ruler --lengths 512,1024,2048 --rope bf16,fp32 --limit 20 \
		--haystack generated --output runs/demo
	@echo "open runs/demo/board.html"

test: .venv/dev.stamp
	$(BIN)/python -m pytest

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
