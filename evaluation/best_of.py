"""Whether the best of four candidates by the head's distance is better for an independent judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.generate import MODEL, SIZE, Scenes, placement
from evaluation.scores import Scorer
from evaluation.statistics import bootstrap, mean, mean_difference
from heads_registry.catalogue import BUILTIN_DIR, Catalogue
from heads_registry.manifest import HeadManifest, ModelManifest
from jobs.request import GenerationRequest, SpatialControl, StoredImage
from worker.engine import TorchEngine
from worker.models import ModelCache
from worker.ranking import ranking, score
from world.captions import caption
from world.seeds import TEST

CANDIDATES = 4
WEIGHTS = (0.125, None)
"""Of the pose control; None: the head's default."""
Row = dict[str, str | float]


def best_of(count: int) -> list[Row]:
    """Pose control as a worker computes it, on a quarter of the scenes: the first of four
    candidates, which a job without `num_candidates` would have made, against the one that the head
    ranks first; a gain's interval above 0 is what best-of is for. Differences are paired. With a
    light hand as well as with the default weight: the readout that guidance has pressed hard says
    little more about the picture."""
    scenes, scorer = Scenes.of(TEST[: max(8, count // 4)]), Scorer()
    models = ModelCache(Catalogue([BUILTIN_DIR]), 2**33, *placement())
    return [row for weight in WEIGHTS for row in _compared(scenes, scorer, models, weight)]


def _compared(
    scenes: Scenes, scorer: Scorer, models: ModelCache, weight: float | None
) -> list[Row]:
    engine, model = TorchEngine(models), models.catalogue.model(MODEL)
    head = models.catalogue.head(model, "pose")
    if weight is None:
        own = head.defaults.weight
        weight = own if own is not None else model.defaults.weight
    kept, order = [], []
    for row in tqdm(range(len(scenes.seeds)), desc=f"best of four, {weight:g}", mininterval=5):
        prompt = caption(scenes.renders[row].scene, pose=False)
        request = _request(model, head, prompt, weight, seed=CANDIDATES * row)
        control = scenes.control(row, "pose")
        made = engine.execute(request, lambda _, control=control: control, lambda *_: None)
        kept.append([np.asarray(image, np.float32) / 255 for image in made.images])
        order.append(ranking([score(request, distances) for distances in made.distances]))
    pictures = torch.from_numpy(np.array(kept)).permute(1, 0, 4, 2, 3)
    pck = np.stack([scorer(some, scenes)["pck@0.1"] for some in pictures], axis=1)
    ranked = np.take_along_axis(pck, np.array(order), axis=1)
    rows: list[Row] = []
    for name, chosen in {
        "one picture (the first)": pck[:, 0],
        "best of four": ranked[:, 0],
        "worst of four": ranked[:, -1],
    }.items():
        rows.append(
            {
                "weight": weight,
                "picture": name,
                "scenes": len(chosen),
                "PCK@0.1": str(bootstrap(mean, chosen)),
                "gain over the first": str(bootstrap(mean_difference, chosen, pck[:, 0])),
                "gain over the mean of four": str(
                    bootstrap(mean_difference, chosen, pck.mean(axis=1))
                ),
            }
        )
    return rows


def _request(
    model: ModelManifest, head: HeadManifest, prompt: str, weight: float, seed: int
) -> GenerationRequest:
    """A job with the defaults that the gateway fills in; its control image is handed over."""
    defaults: dict[str, Any] = model.defaults.model_dump(
        include=set(GenerationRequest.model_fields)
    )
    own = head.defaults
    image = StoredImage(upload_id="upl_", key="uploads/-", sha256="", width=SIZE, height=SIZE)
    return GenerationRequest(
        **defaults,
        task="spatial",
        model=model.name,
        prompt=prompt,
        num_images=1,
        num_candidates=CANDIDATES,
        keep="all",
        seed=seed,
        height=model.height,
        width=model.width,
        controls=(
            SpatialControl(
                head=head.id,
                image=image,
                weight=weight,
                span=own.span or model.defaults.span,
            ),
        ),
    )


PARTS = {"best_of": ("Best of four", best_of)}
"""name → title, function of the count of held-out scenes."""
