"""Where a stage computes: framework, devices and processes."""
