"""What several tools need: Git, the machine in words, params.yaml, tables."""
