# Every target sets up what it needs first (Debian packages as root, a virtual environment in .venv).
VENV ?= .venv
PYTHON = $(VENV)/bin/python
# Three processes a core, as kernel tests wait for more than half of their time, each with whole files:
# they share labs and instances. In the order of tests/conftest.py, not with the most tests first.
PARALLEL = -n $(shell expr $$(nproc) \* 3) --dist loadfile --no-loadscope-reorder
# What has hot modules, or runs the packet path. The rest is the same code in both forms.
HOT = api core datapaths net system worker

.DEFAULT_GOAL := help
.PHONY: help setup setup-run setup-bench demo test unit netns-test wheel wheels check lock fmt fuzz fuzz-asan soak faults e2e e2e-day bench \
	bench-core lab-up lab-down clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: ## install Debian packages (as root) and the virtual environment
	@scripts/setup.sh $(VENV) test

setup-run:
	@scripts/setup.sh $(VENV) run

setup-bench:
	@scripts/setup.sh $(VENV) bench

demo: setup-run ## balance real connections in network namespaces, with a live table
	$(VENV)/bin/featherlb demo

test: setup ## all tests, with the packet path compiled and interpreted; kernel tests need root
	$(PYTHON) -m pytest $(PARALLEL)
	FEATHERLB_PURE=1 $(PYTHON) -m pytest $(PARALLEL) --one-of-each $(HOT:%=tests/unit/%) tests/netns

unit: setup ## only the tests that need neither root nor a kernel
	$(PYTHON) -m pytest tests/unit

netns-test: setup ## only the tests on the real kernel, in network namespaces
	$(PYTHON) -m pytest tests/netns

wheel: setup ## build and install the wheel with this Python, and run its commands
	$(PYTHON) -m pytest tests/wheels -k "runs and $$($(PYTHON) -c \
	    'import sys; print("%d.%d" % sys.version_info[:2])')"

wheels: setup ## build, install and test the wheel with each Python that is here
	$(PYTHON) -m pytest tests/wheels

check: setup ## lint, types, layers, C types, the layout of a flow's record, the image's pins
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON) scripts/check_layers.py
	$(PYTHON) scripts/check_pxd.py
	$(PYTHON) scripts/check_record.py
	$(PYTHON) scripts/check_pins.py

lock: ## pin the newest versions of what the image installs, with their hashes
	scripts/lock.sh

fmt: setup ## format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

e2e: setup-bench ## every scheduler under load in Docker containers; ARGS="--seconds 2", ARGS=--help
	$(PYTHON) -m scripts.e2e $(ARGS)

e2e-day: setup-run ## restarts, a crash, an addition and a reload in Docker containers under load
	$(PYTHON) -m scripts.e2e.day $(ARGS)

fuzz: setup-run ## mutated input for all that reads what others write, for a minute; ARGS="--seconds 600"
	$(PYTHON) -m scripts.fuzz $(ARGS)

fuzz-asan: setup-run ## the same with the packet path compiled for AddressSanitizer
	scripts/asan.sh $(VENV) scripts.fuzz $(ARGS)

soak: setup-bench ## all datapaths under load for an hour, while everything goes wrong; ARGS="--minutes 10"
	$(PYTHON) -m scripts.trials.soak $(ARGS)

faults: setup-bench ## what clients lose by one fault at a time: processes, memory, disk, links, rules, ...
	$(PYTHON) -m scripts.trials.faults $(ARGS)

bench: setup-bench ## compare featherlb with HAProxy, nginx and the kernel; QUICK=1: two minutes
	$(PYTHON) -m scripts.bench $(if $(QUICK),--quick)

bench-core: setup-run ## measure the packet processor alone
	$(PYTHON) -m scripts.bench.core

lab-up: setup-run ## build the lab (client, balancer, backends) and leave it up
	$(PYTHON) -m netns up

lab-down: setup-run ## take the lab down
	$(PYTHON) -m netns down

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find featherlb -name '*.so' -o -name '*.c' | xargs -r rm -f
