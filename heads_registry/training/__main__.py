"""`python -m heads_registry.training RECIPE… --data DIR`: trains heads, writes what is served."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from heads_registry.base_model import BaseModel
from heads_registry.manifest import BUILTIN_DIR, Catalogue, RegistryError
from heads_registry.training.data import load_labelled_images
from heads_registry.training.loop import HeadTrainer
from heads_registry.training.recipe import HeadRecipe


def main() -> int:
    """Train the recipes together; 2 and one line where something is wrong with what was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--model", default="mannequin-64")
    parser.add_argument("--registry", action="append", type=Path, default=[])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="use only so many images")
    parser.add_argument("--run", type=Path, default=Path("runs/heads"), help="checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="where manifest and weights go")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        manifest = Catalogue([BUILTIN_DIR, *options.registry]).model(options.model)
        recipes = [HeadRecipe.load(path) for path in options.recipes]
        labels = list(dict.fromkeys(recipe.label for recipe in recipes))
        data = load_labelled_images(
            options.data, labels, manifest.width, manifest.height, options.limit
        )
        trainer = HeadTrainer(BaseModel.load(manifest, options.device), recipes, data, options.run)
    except (RegistryError, ValueError) as error:
        print(f"cannot train: {error}", file=sys.stderr)
        return 2
    trainer.train()
    metrics = trainer.evaluate()
    for name, values in metrics.items():
        print(name, values)
    trainer.save(options.out, manifest.family, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
