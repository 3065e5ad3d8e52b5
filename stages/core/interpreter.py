"""Refuse to run a stage with an interpreter that lacks the packages of the lock file.

``stages`` imports it before a stage imports any package. Any Python can be the first on PATH, so it uses nothing that
an old one lacks.
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

with open(os.path.join(ROOT, "requirements.lock")) as lock:
    pinned = re.findall("(?m)^(jax|matplotlib|numpy|pandas|ruamel-yaml|tensorflow|tqdm)==([^ ;]+)", lock.read())
folders = [name.replace("-", "_") + "-" + version + ".dist-info" for name, version in pinned]
missing = [folder for folder in folders if not any(os.path.isdir(os.path.join(path, folder)) for path in sys.path)]
if missing:
    sys.exit(
        "stages: expected a Python with the packages of requirements.lock, found "
        + sys.executable
        + " without "
        + ", ".join(folder[: -len(".dist-info")] for folder in missing)
        + ": use `make repro`, or put the absolute path of .venv/bin first on PATH"
    )
