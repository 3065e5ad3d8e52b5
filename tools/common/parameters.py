"""Changes of params.yaml that keep its comments."""

import re
from pathlib import Path


def set_parameter(path: Path, key: str, value: object) -> None:
    """Change the value of a key that only one section of params.yaml has."""
    path.write_text(re.sub(rf"(?m)^(  {key}: )\S+", rf"\g<1>{value}", path.read_text()))
