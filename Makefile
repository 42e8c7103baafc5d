# Two commands are all that a clean clone needs: `make quickstart` and `make test`.
# A virtual environment is built anew whenever pyproject.toml changes, and only then.

PYTHON ?= python3
OUT ?= quickstart
COVERED := quintet.values quintet.data quintet.model quintet.training
COVERAGE := 90

# What `make compare` gives each recipe, and how many seeds.
BUDGET ?= 400k-tokens
SEEDS ?= 2
COMPARED ?= runs/compare
# Runs side by side, with a share of the cores each: small models make poor use of two cores.
JOBS ?= 2
SHARED = xargs -P $(JOBS) -I{} env TTY_COMPATIBLE=0 OMP_NUM_THREADS=$$(expr $$(getconf _NPROCESSORS_ONLN) / $(JOBS)) .venv-quickstart/bin/quintet

.PHONY: quickstart compare learn papers test check test-gpu format clean

## The whole arc on the starter parts: data, training, evaluation, report. Minutes on two cores, no network.
quickstart: .venv-quickstart/ready
	.venv-quickstart/bin/quintet quickstart --out $(OUT)

## Every recipe on the same data with the same budget, with the committed table's two seeds. The same command goes on
## after a stop. 92 minutes on two cores, beside other work (docs/compare.md); a third seed would make it 140.
compare: .venv-quickstart/ready
	seq $(JOBS) | $(SHARED) compare --all --budget $(BUDGET) --seeds $(SEEDS) --limit 300 --out $(COMPARED) --share {}/$(JOBS)
	mkdir -p docs/results
	cp $(COMPARED)/compare.json docs/results/compare.json
	cp $(COMPARED)/compare.md docs/compare.md

## What every recipe reaches with its own amounts, for docs/papers.md: hours. The same command goes on after a stop.
learn: .venv-quickstart/ready
	seq $(JOBS) | $(SHARED) compare --all --limit 300 --out $(COMPARED)-own --share {}/$(JOBS)
	mkdir -p docs/results
	rm -f docs/results/papers-*.json
	cp $(COMPARED)-own/compare.json docs/results/papers.json
	$(MAKE) papers

## docs/papers.md from the recipes and the results that are committed: seconds, after every new recipe.
papers: .venv-quickstart/ready
	.venv-quickstart/bin/quintet papers $(sort $(wildcard docs/results/papers*.json)) --notes docs/results/notes.json --out docs/papers.md

## All tests that run on a CPU, with coverage of the floors that everything stands on. PYTEST="-k resume" takes a few.
test: .venv-test/ready
	.venv-test/bin/python -m pytest -m "not gpu" -n 2 --dist loadfile $(addprefix --cov=,$(COVERED)) --cov-report=term:skip-covered \
		$(if $(PYTEST),,--cov-fail-under=$(COVERAGE)) --junit-xml=build/tests.xml $(PYTEST)

## Format, lint, types, floors and budgets: seconds, before every commit.
check: .venv-test/ready
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/pyright --pythonpath .venv-test/bin/python
	.venv-test/bin/python -m pytest -q tests/unit/test_floors.py tests/unit/test_budget.py

## What needs a CUDA device, in the environment that is active.
test-gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu tests/gpu $(PYTEST)

## Puts the code in form.
format: .venv-test/ready
	.venv-test/bin/ruff format .
	.venv-test/bin/ruff check --fix .

clean:
	rm -rf .venv-quickstart .venv-test build

.venv-quickstart/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-quickstart
	.venv-quickstart/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv-test/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
