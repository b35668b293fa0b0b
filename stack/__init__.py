"""The embedded stack: servers, data directory, supervised processes; no torch, no HTTP."""
