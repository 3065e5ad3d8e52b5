#!/bin/sh
# Make .venv from a lock file: exact versions, hashes required, bytecode compiled. Run by make.
#
#   sh tools/setup/environment.sh requirements.lock
#
# uv installs everything, itself included, in a third of pip's time; pip brings it, with the hash in the same lock.
# Both take their package index from their own settings; where only pip has one, uv is told.
set -eu
lock=$1

fail() {
  echo "environment: $*" >&2
  exit 1
}

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
  if "$candidate" -c "$supported" 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  found=$("${PYTHON:-python3}" -V 2>/dev/null) || found="no ${PYTHON:-python3}"
  fail "expected Python 3.11, 3.12 or 3.13, found $found: install one, or name it: make PYTHON=/path/to/python3.12"
fi

echo "environment: making .venv with $("$python" -V) from $lock (about a minute)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rm -rf .venv
"$python" -m venv .venv >"$log" 2>&1 ||
  fail "expected Python's venv and ensurepip, found none: on Debian and Ubuntu, apt-get install python3-venv"

# The entry of uv alone: its line and the hashes that continue it.
sed -n '/^uv==/,/[^\\]$/p' "$lock" >.venv/uv.lock
.venv/bin/python -m pip install --quiet --require-hashes --no-deps -r .venv/uv.lock >"$log" 2>&1 ||
  fail "expected uv from the package index, got: $(grep -i error "$log" | tail -n 1): check the network and PIP_INDEX_URL"

if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index=$(.venv/bin/python -m pip config get global.index-url 2>/dev/null) || index=${PIP_INDEX_URL:-}
  [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi
# Modules are compiled now, since under PYTHONDONTWRITEBYTECODE they never would be: imports take half the time.
.venv/bin/uv pip sync --quiet --python .venv --require-hashes --compile-bytecode "$lock" >"$log" 2>&1 ||
  fail "expected every package of $lock from the package index, got: $(tr -s '\n ' ' ' <"$log" | cut -c 1-300)"
echo "$lock" >.venv/lock
touch ".venv/$lock.installed"
echo "environment: ready"
