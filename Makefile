# Two commands do all their set-up: `make demo` and `make test`. The rest are for people who change Ingot.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

PEERS := .venv-peers

.PHONY: dev report report-full-size peers bench-env format lint types test check demo bench vendor wheel clean

dev: $(STAMP)

# torch first and by its exact version: where a CPU build of it is at hand that name finds it, a looser one may fetch CUDA
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

# What reads our bundles and cannot be installed beside us; the tests that ask it are skipped without.
peers: $(PEERS)/.installed

$(PEERS)/.installed: constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement constraints-peers.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps --target build/optimum-habana optimum-habana==1.21.2
	touch $@

# The baselines of `ingot bench`, an environment each: about 5 GB, and no packages of ours
bench-env: $(STAMP)
	$(BIN)/python -m ingot.benchmarks.harness.environments

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy cannot see setuptools' package-dir, so it reads the packages through links in build/ns
types: $(STAMP)
	rm -rf build/ns && mkdir -p build/ns/ingot
	for item in ingot/*; do ln -s ../../../$$item build/ns/ingot/; done
	for folder in exporters runtimes quantization benchmarks; do ln -s ../../../$$folder build/ns/ingot/$$folder; done
	$(BIN)/mypy

# one thread to a worker: two workers that both take all cores wait for each other
test: $(STAMP)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: lint types

demo: $(STAMP)
	$(BIN)/python -m ingot.benchmarks.demo out/demo

bench: $(STAMP)
	$(BIN)/python -m ingot.benchmarks.start_up

# what draws a report's plots: pinned, hashed, and in the repository already
vendor: $(STAMP)
	$(BIN)/python -m ingot.benchmarks.harness.vendor

# The report of this machine that the README links: Shapes on Ingot's engines and the best recipe a step at a time, beside the
# peers. Takes some ten minutes.
REPORT := docs/report
report: $(STAMP) bench-env
	$(BIN)/python -m ingot.benchmarks.report shapes out/report --output $(REPORT)

# The same for Stable Diffusion 1.5's size with random weights: an hour or more, and 40 GB in WORK, where a stop loses little
WORK := out/full-size
report-full-size: $(STAMP) bench-env
	$(BIN)/python -m ingot.benchmarks.report full-size $(WORK) --output $(REPORT)-full-size

wheel: $(STAMP)
	rm -rf dist build/lib build/bdist* && $(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) $(PEERS) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
