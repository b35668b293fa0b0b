"""Whether a head fits a model, and why not: for `readout heads check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heads_registry.base_model import unet_outline
from heads_registry.catalogue import Catalogue, UnknownHead
from heads_registry.loading import WeightsError, check_fit, load_head
from heads_registry.manifest import HeadManifest, ModelManifest


@dataclass(frozen=True)
class Fit:
    """A head, a model, and what stands between them; nothing: it fits."""

    head: HeadManifest
    model: ModelManifest
    problems: tuple[str, ...]


def check_head(catalogue: Catalogue, head: str, model: str) -> Fit:
    """Compare a head with a model; the model's weights are not loaded.

    Looked at: the family, the taps and their channels and the time embedding in the U-Net's
    configuration, the weights' hash, keys and shapes.

    Args:
        catalogue: where names are looked up.
        head: a name (of the model's family, or of one family alone), ``family/name``, or the path
            of a manifest.
        model: a name.

    Raises:
        RegistryError: head or model is not known, or the manifest is broken.
    """
    target = catalogue.model(model)
    found = _find(catalogue, head, target)
    problems = []
    if found.base_model != target.family:
        problems.append(
            f"the head is for the family {found.base_model!r}, the model is of {target.family!r}; "
            "if the taps below are no problem, train it on this family or change base_model"
        )
    for check in (lambda: check_fit(found, unet_outline(target)), lambda: load_head(found)):
        try:
            check()
        except WeightsError as error:
            problems.append(str(error).removeprefix(f"head {found.id}: "))
    return Fit(found, target, tuple(problems))


def _find(catalogue: Catalogue, name: str, model: ModelManifest) -> HeadManifest:
    if name.endswith((".yaml", ".yml")):
        return HeadManifest.load(Path(name))
    fitting = [one for one in catalogue.heads_for(model) if name in (one.name, one.id)]
    found = fitting or [one for one in catalogue.heads if name in (one.name, one.id)]
    if len(found) != 1:
        known = ", ".join(one.id for one in catalogue.heads) or "none"
        several = "several families have a head" if found else "no head"
        raise UnknownHead(f"{several} {name!r}; installed: {known}")
    return found[0]
