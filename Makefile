# Every target sets up what it needs, once, and then does its job.

PYTHON ?= python3
VENV ?= .venv
# What to install beside the core. More are other people's work that the tests use: thermox and
# curvlinops compute the same, loops trains, cluster spreads runs over machines; with formal, what
# is quickly proved is a test too:
# make test EXTRAS=sim,synth,train,explore,test,lint,loops,cluster,formal
EXTRAS ?= sim,synth,train,explore,test,lint
# Tests that run side by side.
JOBS ?= 2
# More arguments for the command: make cosim ARGS="--sim icarus --waves"
ARGS ?=

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

comma := ,
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/pip -q --disable-pip-version-check
INSTALLED := $(VENV)/installed-$(subst $(comma),-,$(EXTRAS))
PACKAGES := model rtl sim host
export PATH := $(BIN):$(PATH)

.PHONY: help
help: ## show this list
	@echo "Thermokron: from a matrix to a network trained on co-simulated hardware."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Start with \`make demo\`. More arguments go in ARGS:"
	@echo "  make cosim ARGS=\"--sim icarus --waves\""
	@echo "  make verilog ARGS=\"--cells 32 --lanes 8\""
	@echo "  make test ARGS=\"tests/model -x\""

.PHONY: demo
demo: $(INSTALLED) ## train on the unit's RTL, beside exact K-FAC, Adam and SGD
	@thermokron train demo $(ARGS)

.PHONY: test
test: $(INSTALLED) ## run the tests
	@pytest -q -m "not slow" -n $(JOBS) --dist worksteal $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## run the tests that take minutes each
	@pytest -q -m slow $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## check style, format and types
	@ruff check .
	@ruff format --check .
	@mypy $(foreach package,$(PACKAGES),-p thermokron.$(package))

.PHONY: bench
bench: $(INSTALLED) ## measure what docs/performance.md states, and write its tables
	@python benchmarks/performance.py $(ARGS)

# These two need an extra that nothing else does.
PROVE = $(MAKE) EXTRAS=$(EXTRAS)$(if $(findstring formal,$(EXTRAS)),,$(comma)formal) setup && \
  python -m thermokron.rtl.formal

.PHONY: formal
formal: ## prove what takes seconds of the control plane, and that each property can fail
	@$(PROVE) $(ARGS)

.PHONY: formal-long
formal-long: ## the same, and what takes minutes
	@$(PROVE) --long $(ARGS)

.PHONY: cosim
cosim: $(INSTALLED) ## run the benches on the generated Verilog
	@thermokron cosim $(ARGS)

.PHONY: mutants
mutants: $(INSTALLED) ## break the RTL in one place at a time, and see if the benches notice
	@python -m thermokron.sim.mutants --jobs $(JOBS) $(ARGS)

.PHONY: verilog
verilog: $(INSTALLED) ## write build/unit.v and what belongs to it
	@thermokron verilog -o build/unit.v $(ARGS)

.PHONY: synthesis
synthesis: $(INSTALLED) ## synthesise units of several sizes, and write docs/synthesis.md's tables
	@python benchmarks/synthesis.py $(ARGS)

.PHONY: setup
setup: $(INSTALLED) ## only set up the environment in .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@tools/system-packages $(PYTHON)
	@echo "Setting up $(VENV) with [$(EXTRAS)]; the first time takes a minute or more." >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt setuptools find_libpython
	@find_libpython | grep -q . || { echo "the simulators load Python as a shared library, which" \
	  "$(PYTHON) lacks: rebuild it with --enable-shared, or use Debian's" >&2; exit 1; }
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@# PyPI's is built for CUDA: beside another torch it cannot be imported, nor what looks for it
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(PIP) uninstall -y torchvision 2>/dev/null
	@touch $@

.PHONY: constraints
constraints: ## pin the newest versions that pyproject.toml allows, in constraints.txt
	@rm -rf build/pins && $(PYTHON) -m venv build/pins
	@build/pins/bin/pip install -q -e \
	  '.[sim,synth,train,explore,test,formal,lint,thermox,curvlinops,loops,cluster]' setuptools
	@{ sed '/^[^#]/,$$d' constraints.txt; build/pins/bin/pip freeze --all --exclude-editable | \
	  sed 's/+cpu$$//' | grep -vE '^(pip|nvidia-.*|cuda-.*|triton)(==| @)'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/pins

.PHONY: clean
clean: ## remove what was built; results in runs/ and the environment stay
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## remove the environment too
	@rm -rf $(VENV) *.egg-info
