"""The demo base model: trains a small Stable Diffusion on the world; nothing imports it.

    C="--config demo_model/configs/mannequin-64.yaml --run runs/mannequin-64"
    python -m demo_model.train all $C

renders, then runs vae → text → latents → unet → export. Each is a command of its own, too, and
resumes where it was stopped; a finished stage goes on, its learning rate raised again, with more
`--minutes`. On a busy machine start it with `setsid` (see `devices.raise_priority`), and where the
configuration compiles, set a lasting TORCHINDUCTOR_CACHE_DIR.
"""
