# What a newcomer and a contributor need. Everything happens in .venv; only Python 3.11 or later has to be there.
#
#   make serve ARGS="--model Qwen/Qwen3-0.6B --port 9000"
#   make test ARGS="tests/scheduler -x" JOBS=1
#   make soak ARGS="--minutes 5"

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin

# protoc finds its plugins on the PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: serve test lint protos bench chaos soak clean

serve: $(VENV)/.installed
	@exec $(BIN)/batchyard serve $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(VENV)/.installed-dev
	$(BIN)/python -m protos.generate

bench: $(VENV)/.installed
	$(BIN)/python -m bench.compare $(ARGS)

chaos: $(VENV)/.installed-dev
	$(BIN)/python -m bench.chaos $(ARGS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m bench.chaos.soak $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again when what it is made from has changed.
$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@echo 'Installing Batchyard and what it needs; PyTorch is large, so the first time takes minutes.'
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Batchyard needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@
