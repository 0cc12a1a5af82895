"""The page's files. They name no other host, so that the page works without a network and no one else sees who looks."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def home() -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


def install(app: FastAPI) -> None:
    """Adds the page at `/` and its modules below `/explorer`. They hold no data, so they need no key."""
    app.include_router(router)
    app.mount("/explorer", StaticFiles(directory=FOLDER), name="explorer")
