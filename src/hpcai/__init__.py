"""hpcai: AI health workloads on a supercomputer, from an experiment's name to a trained model and its report."""

__version__ = "0.1.0"
