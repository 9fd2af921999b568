# The only commands anyone needs. A machine must have python3 (3.11 to 3.13) with venv, and make.

PYTHON ?= python3
export PYTHONUNBUFFERED := 1
export PYANNOTE_METRICS_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

PYTEST := .venv/bin/python -m pytest
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo serve test test-fast test-slow lint eval bench chaos gpu-check docs lock setup

setup: .venv/.ready .venv/.models

# Set up once; again only when the lock or the project's metadata changed.
.venv/.ready: requirements.lock pyproject.toml
	@echo "Setting up .venv: downloading about 3 GB of packages, one to three minutes."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	@.venv/bin/uv pip sync --quiet --require-hashes --compile-bytecode --python .venv/bin/python requirements.lock
	@.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python --editable .
	@touch $@

# The demo's models, and the tests'. Without them set-up succeeds all the same; the next one tries again.
.venv/.models: .venv/.ready serve_app/models/catalogue.toml
	@if .venv/bin/python -m serve_app prefetch base speakers; then touch $@; fi

.venv/.test-models: .venv/.models
	@if .venv/bin/python -m serve_app prefetch tiny.en; then touch $@; fi

# PostgreSQL, Chromium and Prometheus, where they may be installed. Tests that lack them are skipped with that reason.
.venv/.test-programs: .venv/.ready tests/programs.sh
	@sh tests/programs.sh > .venv/test-programs.log 2>&1 && touch $@ || tail -n 1 .venv/test-programs.log

demo: setup
	@.venv/bin/python -m serve_app demo

serve: setup
	@.venv/bin/python -m serve_app serve serve_config.demo.yaml

# Without a Ray cluster and without models: what to run after every change.
test-fast: setup
	$(PYTEST) -m "not slow" $(IN_PARALLEL) --ignore tests/cluster --ignore tests/models --ignore tests/benchmarks

test: setup .venv/.test-models .venv/.test-programs
	$(PYTEST) -m "not slow" $(IN_PARALLEL)

# An hour of audio, and what takes long on a cluster.
test-slow: setup .venv/.test-models .venv/.test-programs
	$(PYTEST) -m slow

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo
	.venv/bin/mypy

# Errors of the service in CONFIG beside plain whisperx with the same models: table, and out/eval.json.
CONFIG ?= serve_config.demo.yaml
eval: setup
	@.venv/bin/python -m benchmarks.evaluate --config $(CONFIG)

# Speed, in ratios: table, out/bench.json and out/bench.png.
bench: setup
	@.venv/bin/python -m benchmarks.bench

# Kills, hangs, overload, updates, a thousand requests: table, and out/chaos.json. MODELS=real for real models.
MODELS ?= fakes
chaos: setup .venv/.test-models
	@.venv/bin/python -m benchmarks.chaos --models $(MODELS)

# Every stage on the GPU against the CPU, memory, speed: table, and out/gpu.json. On a CPU: tiny, to try it.
# OPTIONS="--only correctness" and the like: benchmarks/README.md
gpu-check: setup .venv/.test-models
	@.venv/bin/python -m benchmarks.gpu $(OPTIONS)

# Writes docs/reference.md, docs/options.md, the tables on GPUs in docs/operations.md, and the table of settings into
# docs/configuration.md, below its last comment.
docs: setup
	@.venv/bin/python -m tools.reference
	@.venv/bin/python -m tools.options
	@.venv/bin/python -m benchmarks.sizing
	@sed -i '/^<!-- make docs/q' docs/configuration.md
	@.venv/bin/python -m serve_app settings >> docs/configuration.md
	@# The alerts for the Prometheus operator, below the line `spec:`.
	@sed -i '/^spec:/q' deploy/kubernetes/prometheusrule.yaml
	@sed '/^#/d; s/^./  &/' deploy/prometheus/alerts.yml >> deploy/kubernetes/prometheusrule.yaml

# After changing dependencies in pyproject.toml: pins with hashes, without addresses.
lock: setup
	.venv/bin/uv pip compile pyproject.toml --extra server --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet --output-file requirements.lock
