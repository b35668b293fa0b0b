"""``/v1/models`` and ``/v1/heads``: what is installed, with defaults and ranges."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from heads_registry.manifest import UnknownModel
from service import answers
from service.errors import FieldError, NotFound, UnknownModelName
from service.openapi import problems
from service.services import ServicesDep
from service.views import head_view, model_view

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
        try:
            heads = catalogue.heads_for(catalogue.model(query.model))
        except UnknownModel as error:
            wrong = FieldError(parameter="model", detail=str(error))
            raise UnknownModelName(str(error), errors=[wrong]) from error
    return answers.HeadList(items=[head_view(head, catalogue) for head in heads])
