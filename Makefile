# Every target sets up .venv by itself, once. PYTHON: the interpreter to build it with.
PYTHON ?= python3
ALGO ?= pargs
ARGS ?=
# test processes
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# faiss-gpu where an NVIDIA driver is, else faiss-cpu: both own the same folder, so never both
EXTRA := $(if $(wildcard /proc/driver/nvidia/version),gpu,cpu)
# processes that wait for each other must not spin; one thread each, so that results agree
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test test-full lab results benchmarks results-check check-notebooks clean

help:  ## what there is to do
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRA),dev]"
	touch $@

run: $(VENV)/.installed  ## the main job: ALGO=pargs (default), one seed; ARGS="-p alpha 0.5" changes parameters
	$(BIN)/rlgen run $(ALGO) $(ARGS)

lab: $(VENV)/.installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=. $(ARGS)

test: $(VENV)/.installed check-notebooks  ## everything that a change must pass
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not gpu" $(ARGS)

test-full: $(VENV)/.installed check-notebooks  ## test, and what takes long
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not gpu" --timeout 3000 $(ARGS)

check-notebooks: $(VENV)/.installed
	$(BIN)/python tests/check_notebooks.py
	$(BIN)/ruff check rlgen tests
	$(BIN)/python tests/style.py

results: $(VENV)/.installed  ## the committed results: default.yaml, all methods, three seeds (ALGO=…)
	$(BIN)/rlgen results $(ALGO) $(ARGS)

benchmarks: $(VENV)/.installed  ## speed of guided decoding, of an E-step, of a joint step, of rollouts, of searches and of a round of GenAlign on this machine, into results/benchmarks
	mkdir -p results/benchmarks
	for name in run_benchmarks:run run_benchmarks_rest_pg:rest_pg run_benchmarks_lapdog:lapdog run_benchmarks_synth_rl:synth_rl run_benchmarks_genalign:genalign run_benchmarks_memory:memory; do \
	  $(BIN)/papermill nbs/$${name%%:*}.ipynb results/benchmarks/$${name##*:}.ipynb </dev/null || exit 1; \
	  $(BIN)/python -c "import sys; from rlgen.record import normalise_notebook as n; n(sys.argv[1])" results/benchmarks/$${name##*:}.ipynb || exit 1; \
	done

results-check: $(VENV)/.installed  ## which committed results are older than the code
	$(BIN)/rlgen results --check

clean:  ## everyday runs, caches and build leftovers (not .venv, not committed results)
	rm -rf .cache .pytest_cache .ruff_cache build *.egg-info _proc
	find results/runs -mindepth 1 -not -name .gitkeep -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
