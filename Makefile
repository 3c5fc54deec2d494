# Two commands are all a fresh machine needs (CPython 3.11+, pip, make, git):
#   make demo    watch a network train while five of 24 nodes lie
#   make test    lint, types, and every test
#   make check   lint, types, and the tests that take less than a second each: for every day
#   make docs    the documentation, as pages in build/docs/html
# And, on Linux:
#   make deployment    the same on a real Flower deployment on this machine: TLS, keys, seven nodes and a liar
#   make clock   strategies by the clock, on such a deployment with links of 20 and 100 Mbit/s (root, half an hour)
#   make fuzz    a million hostile replies (with atheris; FUZZ_RUNS=1000 for a quick look)
#   make bench   what encoding and decoding cost beside a copy and other aggregators (some 15 minutes, 12 GB)
#   make gpu-check   on a machine with a CUDA GPU: whether all is right there, and how long it takes (six minutes)
#   make bench-check   whether that became slower than benchmarks/baseline.json says
# For maintainers:
#   make dist    build the sdist and the wheel, and check what PyPI checks
#   make lint-workflows   check the GitHub workflows
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported, and keeps that: pip need not compile all of torch before.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo deployment clock test check fuzz bench bench-check gpu-check docs docs-links setup lint types clean
.PHONY: dist lint-workflows

demo: $(VENV)/.installed
	$(BIN)/solon-fl demo

deployment: $(VENV)/.installed
	$(BIN)/python -m deployment.loopback

clock: $(VENV)/.installed
	$(BIN)/python -m deployment.clock

test: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest -n auto -m "not slow"

# One check after the other: left to itself, the fuzzer prefers the slow ones. The last four are whole rounds.
FUZZ_RUNS ?= 250000
FUZZ = $(BIN)/python -m tests.hostile.fuzz -max_len=512 -len_control=20 -rss_limit_mb=4096 -artifact_prefix=.fuzz/
fuzz: $(VENV)/.installed-dev
	$(INSTALL) -e ".[fuzz]"
	set -e; for check in check_group check_digests check_exchange check_silo check_metrics; do \
		mkdir -p .fuzz/$$check; SOLON_FUZZ_CHECK=$$check $(FUZZ) -runs=$(FUZZ_RUNS) .fuzz/$$check; done
	set -e; for check in check_calibration check_draco check_signum check_strategy; do \
		mkdir -p .fuzz/$$check; SOLON_FUZZ_CHECK=$$check $(FUZZ) -runs=$$(($(FUZZ_RUNS) / 100)) .fuzz/$$check; done

# Single-threaded, as servers of many groups are; alone on the machine, or the numbers are noise.
bench: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed

bench-check: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --check benchmarks/baseline.json

# GPU_DATA=FOLDER trains on CIFAR-10 from there, in place of images of noise.
gpu-check: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.gpu_check $(if $(GPU_DATA),--data-dir $(GPU_DATA))

# Warnings are errors. docs-links asks every address on the web, too.
SPHINX = $(BIN)/python -m sphinx -W --keep-going -j auto docs
docs: $(VENV)/.installed-docs
	$(SPHINX) -b html build/docs/html

docs-links: $(VENV)/.installed-docs
	$(SPHINX) -b linkcheck build/docs/links

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# TAG=v1.2.3 also checks that the tag is the version.
dist: $(VENV)/.installed-tools
	rm -rf dist solon_fl.egg-info
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(if $(TAG),test -f dist/solon_fl-$(TAG:v%=%)-py3-none-any.whl)

lint-workflows: $(VENV)/.installed-tools
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

setup: $(VENV)/.installed-dev

# constraints.txt pins torch: its exact version decides which wheel is taken.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[simulation]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e ".[dev,ray]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	touch $@

$(VENV)/.installed-tools:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) build check-jsonschema check-wheel-contents twine zizmor
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz
