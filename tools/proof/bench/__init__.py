"""Measure speed and memory on this machine, this project beside what one would use instead.

    make bench                                    # all parts, a few minutes on two cores
    python -m tools.proof.bench --runs 1 fit      # a quick look at one part

    fit      ten epochs: this project, its NumPy oracle, an eager and a ``tf.function`` loop, Keras
    floor    an epoch against the least that the machine's memory and matrix products would need
    stages   where each stage's time goes: imports, reading, computing, writing
    repro    ``dvc repro`` in a clone of the last commit, from nothing and after a change

Each part is a module: ``measure`` returns its figures, ``targets`` compares them with what the project promises, and
``work`` runs in a process of its own. Runs that are compared are interleaved: run 1 of each, run 2 of each, and so on.
Ratios are between figures of the same run where there is one of each.
"""
