# make repro   the pipeline on the real data            make lint    formatting, lint and types
# make test    the tests                                make lock    new versions into requirements.lock
# Each makes .venv first if it is missing or older than the lock.

.DELETE_ON_ERROR:
.PHONY: repro test lint lock
MAKEFLAGS += --no-print-directory

# DVC runs a stage's command with the first python on PATH, in other folders too: the path must be absolute.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Settings of the user's that would change what is imported.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH

repro: .venv/installed
	dvc repro

test: .venv/installed
	python -m pytest

lint: .venv/installed
	ruff format --check .
	ruff check .
	mypy

lock: .venv/installed
	uv pip compile pyproject.toml --group dev --universal --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" --upgrade --quiet --output-file requirements.lock

.venv/installed: requirements.lock tools/environment.sh
	@sh tools/environment.sh requirements.lock
