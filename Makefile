# make demo   the main job on scikit-learn's digits (CPU, no download)
# make test   the test suite, with the linters and type checks in it
# Both create the environment in .venv when it is missing and reuse it when it is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DELETE_ON_ERROR:
.PHONY: demo test test-all lint audit constraints clean

demo: $(READY)
	$(BIN)/rankfront sweep examples/digits.yaml --output runs/demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not chaos" -n 2

test-all: $(READY)
	$(BIN)/python -m pytest -m "not chaos" -n 2

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# needs the network: the advisories of pypi.org
audit: $(READY)
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip -r constraints.txt

# The tested set of versions. Bytecode is compiled here, once, instead of at the first import of each package.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; }
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $(READY)

constraints:
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --extra dev --upgrade \
		--custom-compile-command "make constraints" --quiet -o constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
