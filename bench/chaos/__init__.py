"""Faults under load, and what clients see of them: `python -m bench.chaos --help`, docs/recovery.md."""
