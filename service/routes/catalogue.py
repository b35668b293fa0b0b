"""``/v1/models``, ``/v1/heads`` and ``/v1/adapters``: what is installed, with defaults, ranges."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from heads_registry.catalogue import Catalogue, UnknownModel
from heads_registry.manifest import ModelManifest
from service import answers
from service.errors import FieldError, NotFound, UnknownModelName
from service.openapi import problems
from service.services import ServicesDep
from service.views import adapter_view, head_view, model_view

router = APIRouter(prefix="/v1", tags=["catalogue"])


class HeadQuery(BaseModel):
    """Which heads."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, max_length=64, description="only heads that fit this model")


@router.get(
    "/models",
    operation_id="listModels",
    response_model=answers.ModelList,
    responses=problems(),
)
async def list_models(services: ServicesDep) -> answers.ModelList:
    """Installed models, by name."""
    catalogue, default = services.catalogue, services.settings.default_model
    models = (catalogue.models[name] for name in sorted(catalogue.models))
    return answers.ModelList(items=[model_view(model, catalogue, default) for model in models])


@router.get(
    "/models/{name}",
    operation_id="getModel",
    response_model=answers.ModelView,
    responses=problems(404),
)
async def get_model(name: str, services: ServicesDep) -> answers.ModelView:
    """One model."""
    catalogue = services.catalogue
    try:
        return model_view(catalogue.model(name), catalogue, services.settings.default_model)
    except UnknownModel as error:
        raise NotFound(str(error)) from error


@router.get(
    "/heads",
    operation_id="listHeads",
    response_model=answers.HeadList,
    responses=problems(422),
)
async def list_heads(
    query: Annotated[HeadQuery, Query()], services: ServicesDep
) -> answers.HeadList:
    """Installed readout heads, by id."""
    catalogue = services.catalogue
    heads = catalogue.heads
    if query.model is not None:
        heads = catalogue.heads_for(_model(query.model, catalogue))
    return answers.HeadList(items=[head_view(head, catalogue) for head in heads])


class AdapterQuery(BaseModel):
    """Which adapters."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, max_length=64, description="only adapters that fit this model")


@router.get(
    "/adapters",
    operation_id="listAdapters",
    response_model=answers.AdapterList,
    responses=problems(422),
)
async def list_adapters(
    query: Annotated[AdapterQuery, Query()], services: ServicesDep
) -> answers.AdapterList:
    """Installed ControlNets and T2I-Adapters, by id."""
    catalogue = services.catalogue
    adapters = catalogue.adapters
    if query.model is not None:
        adapters = catalogue.adapters_for(_model(query.model, catalogue))
    return answers.AdapterList(items=[adapter_view(one, catalogue) for one in adapters])


def _model(name: str, catalogue: Catalogue) -> ModelManifest:
    try:
        return catalogue.model(name)
    except UnknownModel as error:
        wrong = FieldError(parameter="model", detail=str(error))
        raise UnknownModelName(str(error), errors=[wrong]) from error
