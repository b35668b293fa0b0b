"""What a deployment survives, measured on real servers and processes: `python -m bench.chaos`."""
