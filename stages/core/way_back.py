"""The way back to the last commit's results after a failed run. ``make repro`` prints it too.

python -m stages.core.way_back
"""

import subprocess

GO_BACK = "git restore -SW -s HEAD metrics plots dvc.lock && dvc checkout --force"
"""Git's part ignores what is staged and what is in conflict."""


def way_back() -> str:
    """Return a clause that says how to go back, or nothing if the last commit has no results that DVC can read."""
    try:
        lock = subprocess.run(["git", "show", "HEAD:./dvc.lock"], capture_output=True)
        listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD", "metrics", "plots"], capture_output=True)
    except FileNotFoundError:
        return ""
    if lock.returncode or listed.stdout.split() != [b"metrics", b"plots"] or not is_lockfile(lock.stdout):
        return ""
    return f"`{GO_BACK}` brings back the last commit's results; add params.yaml after dvc.lock for its parameters too"


def is_lockfile(content: bytes) -> bool:
    """Return whether DVC can read the content of a ``dvc.lock``: one that is cut short can still be YAML."""
    import yaml  # here, as only a failure and the repair need them
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return True


if __name__ == "__main__" and (clause := way_back()):
    print(f"make: {clause}")
