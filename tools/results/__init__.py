"""What came out: one comparison, one page. Libraries' own settings have no effect on them."""

import sys

if sys.argv[0] == "-m":  # what argv is while `python -m` looks for a module of this package
    from stages.core.startup import without_library_settings

    without_library_settings()
