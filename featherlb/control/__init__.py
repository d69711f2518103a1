"""The control plane: configuration, health, workers and host, kept in step."""
