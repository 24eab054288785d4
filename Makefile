# The one entry to everything that a developer runs. `make help` lists it.

PYTHON ?= $(shell tools/find-python)
VENV := .venv/bin
# What ruff and mypy look at besides the package.
CHECKED := $(wildcard dtun tests tools demo bench)
# Narrow it down with, for example: make test ARGS="-n 0 -k handshake tests/unit"
ARGS ?= -n auto --dist loadgroup --no-loadscope-reorder

# What `make bench` and `make profile` are told, for example: make bench OPTIONS="--quick --json results.json"
OPTIONS ?=
FUZZ ?= 60
SEED := $(or $(SEED),$(shell date +%s))

.PHONY: help check demo bench profile test fuzz lint mypy mypy-linux mypy-darwin format hooks lock setup clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: ## show the tunnel at work between network namespaces (root)
	@$(PYTHON) tools/bootstrap.py demo
	@$(VENV)/python -m demo.demo

bench: ## compare dtun with other tunnels, by numbers (root; see bench/README.md)
	@$(PYTHON) tools/bootstrap.py bench
	@$(VENV)/python -m bench.run $(OPTIONS)

profile: ## show where dtun's time goes (root)
	@$(PYTHON) tools/bootstrap.py bench
	@$(VENV)/python -m bench.hotspots $(OPTIONS)

check: lint ## lint and the fast tests, before each commit
	$(VENV)/python -m pytest $(ARGS) tests/unit

test: setup ## run all tests
	$(VENV)/python -m pytest $(ARGS)

fuzz: setup ## feed each parser with bad input for FUZZ seconds, from another SEED each time
	DTUN_FUZZ_SECONDS=$(FUZZ) DTUN_FUZZ_SEED=$(SEED) $(VENV)/python -m pytest --timeout 0 $(ARGS) \
		tests/fuzz tests/netns/test_killed.py tests/unit/session/test_bad_network.py

lint: setup ## ruff and mypy, changing nothing
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	@$(MAKE) --no-print-directory -j 2 mypy

mypy: mypy-linux mypy-darwin

# The helpers in tests/netns are imported by their bare names.
mypy-linux:
	MYPYPATH=tests/netns:tests/darwin $(VENV)/mypy --explicit-package-bases --exclude tests/darwin/conftest.py $(CHECKED)

mypy-darwin:
	$(VENV)/mypy --platform darwin --cache-dir .mypy_cache/darwin dtun

format: setup ## ruff's formatter and its safe fixes
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

hooks: setup ## run lint before each commit
	$(VENV)/pre-commit install

lock: ## pin requirements/*.txt anew from pyproject.toml (Python 3.11)
	$(PYTHON) tools/lock.py

setup: ## what the others do first: system packages, .venv, dtun in it
	@$(PYTHON) tools/bootstrap.py test

clean: ## remove everything that was made here
	rm -rf .venv build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment of its own: nothing else needs what is in it.
SITE := .cache/site

$(SITE)/.installed: requirements/docs.txt
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/pip --disable-pip-version-check install --quiet --require-hashes -r requirements/docs.txt
	@touch $@

docs: $(SITE)/.installed ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet

.PHONY: docs

reference: setup ## write docs/configuration.md anew, from the models of the configuration
	$(VENV)/python -m tools.reference

.PHONY: reference install uninstall deb

# For example: make uninstall INSTALL=--purge
INSTALL ?=

install: ## install or update dtun on this machine (root; docs/install.md)
	@$(PYTHON) tools/bootstrap.py install
	@$(PYTHON) -B -m tools.install $(INSTALL)

uninstall: ## remove it; INSTALL=--purge removes configuration and keys as well (root)
	@$(PYTHON) tools/bootstrap.py install
	@$(PYTHON) -B -m tools.uninstall $(INSTALL)

deb: ## build dist/dtun_VERSION_ARCH.deb, which needs no network to be installed
	@$(PYTHON) tools/bootstrap.py install
	@$(PYTHON) -B -m tools.deb
