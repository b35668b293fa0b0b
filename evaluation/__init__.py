"""Judges, measures and tables of how good results are; imports any room, no room imports it."""
