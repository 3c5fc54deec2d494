# On a fresh machine with CPython 3.11+, pip, make and git:
#   make demo    watch a network train while five of 24 nodes lie
#   make test    lint, types, and every test
#   make check   lint, types, and the tests that take less than a second each, for daily use
#   make docs    the documentation, as pages in build/docs/html
# And, on Linux:
#   make deployment    train on a Flower deployment on this machine: TLS, keys, seven nodes, one of which lies
#   make clock   time strategies on such a deployment, with links of 20 and 100 Mbit/s (root, half an hour)
#   make fuzz    feed the server a million hostile replies (with atheris; FUZZ_RUNS=1000 for a quick look)
#   make bench   time encoding and decoding against a copy and other aggregators (some 15 minutes, 12 GB)
#   make gpu-check   check and time the package on a CUDA GPU (six minutes)
#   make bench-check   time the smaller sizes again, and fail if they are slower than in benchmarks/baseline.json
# For maintainers:
#   make dist    build the sdist and the wheel, and check what PyPI checks
#   make lint-workflows   check the GitHub workflows
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module at its first import and caches the result, so pip need not compile all of torch.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo deployment clock test every-test check fuzz bench bench-check gpu-check docs docs-links setup lint types clean
.PHONY: dist lint-workflows

demo: $(VENV)/.installed
	$(BIN)/solon-fl demo

deployment: $(VENV)/.installed
	$(BIN)/python -m deployment.loopback

clock: $(VENV)/.installed
	$(BIN)/python -m deployment.clock

# At the same time: tests of deployments wait much, and mypy uses one core for a minute.
test: $(VENV)/.installed-dev lint
	$(MAKE) --no-print-directory --jobs=2 types every-test

every-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

check: $(VENV)/.installed-dev lint types
	$(BIN)/python -m pytest -n auto -m "not slow"

# The checks run one by one, because the fuzzer would prefer the slow ones. The last four run whole rounds.
FUZZ_RUNS ?= 250000
FUZZ = $(BIN)/python -m tests.hostile.fuzz -max_len=512 -len_control=20 -rss_limit_mb=4096 -artifact_prefix=.fuzz/
fuzz: $(VENV)/.installed-dev
	$(INSTALL) -e ".[fuzz]"
	set -e; for check in check_group check_digests check_exchange check_silo check_metrics; do \
		mkdir -p .fuzz/$$check; SOLON_FUZZ_CHECK=$$check $(FUZZ) -runs=$(FUZZ_RUNS) .fuzz/$$check; done
	set -e; for check in check_calibration check_draco check_signum check_strategy; do \
		mkdir -p .fuzz/$$check; SOLON_FUZZ_CHECK=$$check $(FUZZ) -runs=$$(($(FUZZ_RUNS) / 100)) .fuzz/$$check; done

# On one thread, as in a server of many groups. Other load on the machine makes the numbers useless.
bench: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed

bench-check: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed --check benchmarks/baseline.json

# GPU_DATA=FOLDER trains on the CIFAR-10 images in that folder instead of noise.
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

# constraints.txt pins torch. Its wheel comes from PyPI (with CUDA on Linux) or from PIP_EXTRA_INDEX_URL.
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
