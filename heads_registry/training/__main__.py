"""`python -m heads_registry.training …`: `readout train head …` where only this room is installed;
both call `heads_registry.training.command` with the same options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heads_registry.manifest import RegistryError
from heads_registry.training.command import DTYPES, Options, train_heads


def main() -> int:
    """Train; 2 and one line where something is wrong with what was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a registry directory")
    parser.add_argument("--run", type=Path, help="checkpoint, caches, previews")
    parser.add_argument("--model", default="mannequin-64")
    parser.add_argument("--registry", action="append", type=Path, default=[], dest="registries")
    parser.add_argument("--limit", type=int, help="use only so many images, videos or people")
    parser.add_argument("--minutes", type=float, help="stop after so much training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--mixed-precision", action=argparse.BooleanOptionalAction)
    parser.add_argument("--tensorboard", action="store_true")
    try:
        for path in train_heads(Options(**vars(parser.parse_args()))):
            print(path)
    except (RegistryError, ValueError) as error:
        print(f"cannot train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
