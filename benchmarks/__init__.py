"""Commands that measure: coverage of architectures, speed and memory of the decomposition."""
