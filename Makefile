# make            this list                               make lint     formatting, lint, types, schemas, workflow
# make repro      the pipeline on the real data           make lock     new versions into the lock files
# make test       the tests that take seconds; FILE=tests/test_train.py for all of one module
# make test-all   all tests
# make compare    REV=main: is the difference to that revision real?
# make report     report.html: all results on one page; REV=main: and what changed since
# make verify     the same model in every way this machine can train it; EPOCHS=1 for a quick look
# make bench      how fast, beside what one would use instead; RUNS=1 for a quick look, PARTS="fit floor" for some
# make kills      stages and dvc killed at random moments; KILLS=10 for a quick look
#
# Each makes .venv first if it is missing or unsound. EXTRAS=gpu makes it with the CUDA libraries, EXTRAS=proof with what
# proves the GPU program on a CPU, once; the choice is kept until .venv is removed. PYTHON=... names the interpreter.

.PHONY: help repro test test-all compare report verify bench kills lint lock environment
MAKEFLAGS += --no-print-directory

ifneq ($(filter-out gpu proof,$(EXTRAS))$(word 2,$(EXTRAS)),)
$(error expected EXTRAS=gpu, EXTRAS=proof or none, got EXTRAS=$(EXTRAS))
endif
LOCK := $(or $(EXTRAS:%=requirements-%.lock),$(shell cat .venv/lock 2>/dev/null),requirements.lock)
ENVIRONMENT := environment

# DVC runs a stage's command with the first python on PATH, in other folders too: the path must be absolute.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Settings of the user's that would change what is imported.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

repro: $(ENVIRONMENT) .venv/plots.html
	@python -m tools.setup.repair
	@dvc repro || { python -m stages.core.way_back >&2; exit 1; }

.venv/plots.html: requirements.lock | $(ENVIRONMENT)
	@python -m tools.setup.plots $@

test: $(ENVIRONMENT)
	python -m pytest $(or $(FILE),-m "not slow")

# Many of the slow tests wait for processes of their own: three workers keep two processors busy.
test-all: export PYTEST_XDIST_AUTO_NUM_WORKERS := $(shell echo $$(($$(nproc) * 3 / 2)))
test-all: $(ENVIRONMENT)
	python -m pytest

compare: $(ENVIRONMENT)
	@python -m tools.results.compare '$(or $(REV),$(error expected a revision to compare with, got none: make compare REV=main))'

report: $(ENVIRONMENT)
	@python -m tools.results.report $(REV:%='%')

verify: $(ENVIRONMENT)
	@python -m tools.setup.repair
	dvc repro --quiet resize
	python -m tools.proof.verify $(EPOCHS:%=--epochs %)

bench: $(ENVIRONMENT)
	@python -m tools.setup.repair
	dvc repro --quiet resize
	python -m tools.proof.bench $(RUNS:%=--runs %) $(PARTS)

kills: $(ENVIRONMENT)
	python -m tools.proof.kills $(KILLS:%=--kills %)

lint: $(ENVIRONMENT)
	ruff format --check .
	ruff check .
	mypy
	check-jsonschema --quiet --schemafile params.schema.json params.yaml
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/pipeline.yml
	zizmor --quiet --offline --persona=pedantic .github

# Each lock takes all that the one before it has in the same versions.
lock: $(ENVIRONMENT)
	$(COMPILE) --upgrade --output-file requirements.lock
	$(COMPILE) --extra gpu --constraint requirements.lock --output-file requirements-gpu.lock
	$(COMPILE) --extra proof --constraint requirements-gpu.lock --output-file requirements-proof.lock
COMPILE = uv pip compile pyproject.toml --group dev --universal --fork-strategy fewest --generate-hashes \
  --no-emit-index-url --custom-compile-command "make lock" --quiet

environment:
	@sh tools/setup/environment.sh $(LOCK)
