"""Have ``dvc plots show`` and ``dvc plots diff`` make pages that need no network. Run once by ``make repro``.

    python -m tools.setup.plots .venv/plots.html

DVC's own template loads the library that draws the charts from the network. This one holds it: 0.9 MB, so no commit
holds the template, and the setting that names it is that of this clone alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import vl_convert

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>DVC plots</title>
<style>table { border-spacing: 15px; }</style>
<script>%s</script>
</head>
<body>{plot_divs}</body>
</html>
"""

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(TEMPLATE % vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), encoding="utf-8")
    from_dvc = os.path.relpath(path, ".dvc")
    subprocess.run(["dvc", "config", "--local", "plots.html_template", from_dvc], check=True)
