"""What make needs: the environment, repairs, the schema of params.yaml."""
