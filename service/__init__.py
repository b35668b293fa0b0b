"""HTTP to jobs. Knows FastAPI and the torch-free catalogue; never torch or diffusers."""
