"""Timings, side by side in one run; may import any room, nothing imports it."""
