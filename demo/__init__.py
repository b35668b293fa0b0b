"""The demo: real requests for pose, depth and edge controls over HTTP, and a contact sheet."""
