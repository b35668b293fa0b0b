"""Failures that concern the worker's process and not only the job that it runs; without torch."""

from __future__ import annotations


class DeviceLost(Exception):
    """The device takes no more work from this process: it must end, the job runs elsewhere."""


class OutOfMemory(Exception):
    """The cheapest plan needs more memory than there is."""
