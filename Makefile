# make demo and make test do all the set-up themselves; both can be repeated.
PYTHON ?= python3
BIN := .venv/bin
# Geant4 tables beside the checkout are used by the tests that need them; without any, those tests say so and are skipped.
SHARED_TABLES := $(wildcard ../shared/geant4-data)
export GEANT4_DATA_DIR ?= $(if $(SHARED_TABLES),$(abspath $(SHARED_TABLES)),)

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/caloforge demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[geant4,onnx,dev]'
	touch $@

clean:
	rm -rf .venv demo-report
