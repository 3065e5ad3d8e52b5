"""Commands around the pipeline. They import ``stages``, never the other way, and each other only through ``common``."""
