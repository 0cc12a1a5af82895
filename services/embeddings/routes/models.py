"""Takes new versions of the models without a restart."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from services.embeddings.answers import ErrorAnswer, Json, ReloadAnswer
from services.embeddings.edge.access import require
from services.embeddings.models.live import Models
from services.embeddings.state import alone

router = APIRouter(dependencies=[Depends(require("admin")), Depends(alone)])

Name = Annotated[str | None, Query(description="name of one model; all if not given")]


@router.post(
    "/v1/models/reload", response_model=ReloadAnswer, responses={404: {"model": ErrorAnswer}, 409: {"model": ErrorAnswer}}
)
async def reload(request: Request, name: Name = None) -> Json:
    """Loads what the models' sources offer now. A version that fails its checks is refused, and the old one goes on answering."""
    models: Models = request.app.state.service
    return Json({"models": await models.reload(name)})
