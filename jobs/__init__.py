"""The verbs: each module has `main(cfg, run)` and is imported by name, on the compute node."""
