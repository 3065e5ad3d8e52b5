#!/bin/sh
# Make .venv from a lock file, unless it is there and sound. Run by make.
#
#   sh tools/setup/environment.sh requirements.lock
#
# A new environment is built in .venv/.new while the former one stays usable, then both change places. .venv itself is
# never replaced: it may be a link or a mount. .venv/record says what it was made of and is compared at each call.
# install.py installs, hashes required, with those of pip's settings that say where packages come from.
set -eu
lock=$1 new=.venv/.new

fail() { # words before, then what a program wrote: on one line, without passwords or a traceback below an error
  written=$(printf '%s\n' "${2:-}" | sed 's#://[^/@ ]*@#://****@#g' |
    awk '/^Traceback/ && text { exit }  { text = text " " $0 }  END { print text }' | tr -s ' ')
  echo "environment: $1${written:+ }${written# }" >&2
  exit 1
}

# Python's own settings would change what is imported and what a warning does.
for name in $(env | sed -n 's/^\(PYTHON[A-Z]*\)=.*/\1/p'); do
  [ "$name" = PYTHON ] || unset "$name"
done

made_of='import hashlib, os, sys
interpreter = os.path.realpath(sys._base_executable)
print(sys.prefix, interpreter, sys.version_info[:2], sys.argv[1], hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())'
sound() {
  found=$(.venv/bin/python -I -c "$made_of" "$lock" 2>/dev/null) && [ "$found" = "$(cat .venv/record 2>/dev/null)" ]
}

if sound; then exit; fi
[ -f "$lock" ] || fail "expected $lock, found none: restore it, or remove .venv"
made=$(mkdir -p .venv 2>&1 && touch .venv/lock 2>&1) || fail "$made"
exec 9<.venv/lock
flock -n 9 || { echo "environment: waiting for another make that makes .venv"; flock 9; }
if sound; then exit; fi

# The interpreter's own path: a name on PATH may mean another one later, or .venv's.
try='import os, sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    print("Python %d.%d.%d" % sys.version_info[:3]); sys.exit(1)
missing = []
for name in "bz2 ctypes ensurepip sqlite3 ssl venv zlib".split():
    try: __import__(name)
    except ImportError: missing.append(name)
if missing:
    print("Python %d.%d.%d without " % sys.version_info[:3] + ", ".join(missing)); sys.exit(1)
print(os.path.realpath(sys._base_executable))'
python='' found=''
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi
for candidate; do
  command -v "$candidate" >/dev/null || { [ "$candidate" != "$1" ] || found="no $1"; continue; }
  if answer=$("$candidate" -E -c "$try" 2>/dev/null); then python=$answer; break; fi
  found="${found:+$found, }$candidate: ${answer:-does not start}"
done
case $found in *ensurepip*) found="$found (on Debian and Ubuntu: apt-get install python3-venv)" ;; esac
[ -n "$python" ] ||
  fail "expected Python 3.11, 3.12 or 3.13, found $found: install one, or name it: make PYTHON=/path/to/python3.12"

echo "environment: making .venv with $("$python" -V) from $lock (about a minute)"
echo "$lock" >.venv/lock # the choice, which a failure must not forget
trap 'rm -rf "$new"' EXIT
trap 'exit 130' HUP INT TERM
rm -rf "$new"
written=$("$python" -I -m venv --without-pip "$new" 2>&1) || fail "venv failed:" "$written"
written=$("$new/bin/python" -I -m ensurepip 2>&1) || fail "ensurepip failed:" "$written" # whose cause venv would hide

written=$("$new/bin/python" -I tools/setup/install.py "$lock" 2>&1) || fail "installation failed:" "$written"

trap '' HUP INT TERM # a moment
rm -rf .venv/record .venv/.old
mkdir .venv/.old
for path in "$new"/*; do
  name=${path##*/}
  if [ -e ".venv/$name" ] || [ -L ".venv/$name" ]; then mv ".venv/$name" .venv/.old/; fi
  mv "$path" .venv/
done
.venv/bin/python -I -c "$made_of" "$lock" >.venv/record
rm -rf .venv/.old
echo "environment: ready"
