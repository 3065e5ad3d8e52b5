"""What several tools need: Git, the machine in words, tables."""
