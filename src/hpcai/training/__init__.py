"""The loop's parts: state.py (what a checkpoint saves), steps.py (which samples, one optimiser step), checkpoint.py (files)."""
