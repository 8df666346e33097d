# The README's commands. Each makes what it needs; `make help` lists them.
PYTHON ?= python3
PIP_ARGS ?=
BED_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-
QUICK := architecture errors rundir lease context inputs cluster plan output tasks metrics splits steps state samples cli
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help run test quick bench examples format clean slurm-up slurm-down
help:  ## list these commands
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

run: $(READY)run  ## train a classifier on the shipped chest X-rays; ends with its score and its report
	$(BIN)/python -m hpcai.run +experiment=pneumonia

test: $(READY)test  ## format, lint, types and every test that this machine can run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hpcai check --all
	$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: $(READY)test  ## what answers in half a minute
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not slow and not fault" -n 2 $(QUICK:%=tests/test_%.py) $(PYTEST_ARGS)

bench: $(READY)bench  ## the figures, side by side with their peers (about an hour)
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python "$$program" || exit 1; done

slurm-up:  ## a real Slurm on this machine (Debian, root), for cluster=testbed; prints the line that a shell evaluates
	@PYTHONPATH=src $(PYTHON) -m hpcai.slurm.testbed.bed up $(BED_ARGS)

slurm-down:  ## end it, and leave nothing of it
	@PYTHONPATH=src $(PYTHON) -m hpcai.slurm.testbed.bed down $(BED_ARGS)

examples: $(READY)run  ## write slurm/examples anew: the scripts that would be submitted
	@grep -v '^#' slurm/examples/commands.txt | while IFS=: read -r file words; do \
	  $(BIN)/hpcai plan $$words 2>/dev/null | sed -n '/^#!/,$$p' > slurm/examples/$$file; done

format: $(READY)test  ## put the code into its one shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment; runs/ stays
	rm -rf $(VENV)

# `run` needs hpcai alone; `test` needs its extras too. A changed constraint or dependency installs anew.
$(READY)run: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -q -c constraints.txt $(PIP_ARGS) -e '.[screening]'
	@touch $@
$(READY)test: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -q -c constraints.txt $(PIP_ARGS) -e '.[dev,imaging,browser,hpo,tensorboard,mlflow,mpi,notebook,screening]'
	@touch $@ $(READY)run
$(READY)bench: $(READY)test
	$(BIN)/python -m pip install -q -c constraints.txt $(PIP_ARGS) -e '.[bench]'
	@touch $@
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"python3 is {v[0]}.{v[1]}; hpcai needs 3.11 or newer. Say which one: make run PYTHON=python3.11")'
	@echo "making $(VENV) with the versions of constraints.txt (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
