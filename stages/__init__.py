"""The pipeline. Verbs are DVC stages, run as ``python -m stages.<verb> INPUTS OUTPUTS``; nouns are imported by verbs.

    download -> resize -> train -> evaluate -> render        the verbs, in data order; they meet only through files
    command, params, files, idx, dataset                     what a stage is, what it reads, what it writes
    scaffold, exact, model, model_jax, device, processes     the lesson, its arithmetic, its two frameworks

Nouns never import verbs, and verbs never import verbs.
"""
