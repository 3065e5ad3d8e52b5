"""The pipeline: five stages, each a module run as ``python -m stages.<verb> INPUTS OUTPUTS``, on three packages.

    download -> resize -> train -> evaluate -> render    the stages, in data order; they meet only through files
    runtime                                              which framework, on which devices, in how many processes
    model                                                the lesson: data set, trainer, model, exact arithmetic
    core                                                 what every stage stands on: command, params, files, data set

Stages import packages, ``runtime`` and ``model`` import ``core``, and nothing imports a stage.
"""

import sys

if sys.argv[0] in ("-m", "-c"):  # what argv is while `python -m` looks for a stage; -c in Python 2
    import stages.core.interpreter  # noqa: F401 - DVC has removed the outputs by now; no code of ours runs earlier
if sys.argv[0] == "-m" and "stages." in sys.orig_argv[-len(sys.argv)]:  # a stage, not a tool that imports from here
    from stages.core import startup

    startup.prepare()  # before any library
