"""Adapters of a request → the effective ones: found, checked against model and picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heads_registry.catalogue import Catalogue, IncompatibleAdapter, UnknownAdapter
from heads_registry.manifest import AdapterManifest, ModelManifest
from jobs.request import Adapter
from service import schemas
from service.checks import check_span
from service.controls import Control as AskedControl
from service.errors import IncompatibleAdapterName, InvalidRequest, UnknownAdapterName
from service.geometry import Picture
from service.references import TakeImage


@dataclass(frozen=True)
class Known:
    """What else the request says, which adapters must go with.

    Attributes:
        catalogue: what is installed.
        model: the base model.
        picture: its size.
        steps: those that are run.
    """

    catalogue: Catalogue
    model: ModelManifest
    picture: Picture
    steps: range


def find_adapters(
    asked: schemas.GenerationParameters, controls: tuple[AskedControl, ...], known: Known
) -> list[AdapterManifest]:
    """The manifests of the request's adapters, checked; no image is taken yet.

    Raises:
        UnknownAdapterName, IncompatibleAdapterName, InvalidRequest: with the field's pointer.
    """
    if not asked.adapters:
        return []
    for index, control in enumerate(controls):
        if _needs_original(control):
            raise InvalidRequest.at(
                "#/adapters",
                f"control {index} needs the unguided original, which is sampled without adapters; "
                "leave the adapters out, or compare with a reference and name the boxes",
            )
    found = []
    for index, adapter in enumerate(asked.adapters):
        pointer = f"#/adapters/{index}"
        manifest = _manifest(adapter, pointer, known)
        _check(adapter, manifest, pointer, known)
        found.append(manifest)
    return found


def resolve_adapter(
    asked: schemas.Adapter,
    manifest: AdapterManifest,
    pointer: str,
    picture: Picture,
    take_image: TakeImage,
) -> Adapter:
    """One adapter with its defaults, and its image taken."""
    keypoints = asked.keypoints
    return Adapter(
        type=manifest.type,
        model=manifest.id,
        image=take_image(asked.image, f"{pointer}/image") if asked.image else None,
        pose=keypoints.to_pose(picture.width / picture.height) if keypoints else None,
        fit=asked.fit,
        scale=manifest.defaults.scale if asked.scale is None else asked.scale,
        span=asked.span or manifest.defaults.span,
    )


def _needs_original(control: AskedControl) -> bool:
    """Whether a control compares with the unguided picture, or looks for faces in it."""
    if isinstance(control, schemas.IdentityControl):
        return control.boxes is None
    return isinstance(control, schemas.AppearanceControl) and control.towards == "original"


def _manifest(asked: schemas.Adapter, pointer: str, known: Known) -> AdapterManifest:
    try:
        manifest = known.catalogue.adapter(known.model, asked.model)
    except UnknownAdapter as error:
        raise UnknownAdapterName.at(f"{pointer}/model", str(error)) from error
    except IncompatibleAdapter as error:
        raise IncompatibleAdapterName.at(f"{pointer}/model", str(error)) from error
    if asked.type not in (None, manifest.type):
        raise IncompatibleAdapterName.at(
            f"{pointer}/type",
            f"adapter {manifest.name!r} is a {manifest.type}; say that, or leave the type out",
        )
    return manifest


def _check(asked: schemas.Adapter, manifest: AdapterManifest, pointer: str, known: Known) -> None:
    """Whether the adapter takes what it is given, at this strength and size."""
    if asked.keypoints is not None and manifest.conditioning != "pose":
        raise InvalidRequest.at(
            f"{pointer}/keypoints",
            f"adapter {manifest.name!r} sees {manifest.conditioning} images; only pose adapters "
            "take key points; give an image",
        )
    if asked.scale is not None and asked.scale > manifest.max_scale:
        raise InvalidRequest.at(
            f"{pointer}/scale",
            f"{asked.scale:g}; adapter {manifest.name!r} takes 0 to {manifest.max_scale:g}",
        )
    span: Any = asked.span or manifest.defaults.span
    check_span(span, known.steps, f"{pointer}/span", "adapter")
    sizes = {"height": known.picture.height, "width": known.picture.width}
    for name, size in sizes.items():
        if size % manifest.size_multiple:
            raise InvalidRequest.at(
                f"#/{name}",
                f"{size} px; adapter {manifest.name!r} takes multiples of {manifest.size_multiple}",
            )
