"""What every stage stands on: itself as a command, params.yaml, its files, and the published data set."""
