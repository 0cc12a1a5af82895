"""The page /docs: all routes, from the OpenAPI document. It has no scripts and names no other host."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .4rem 0 } summary b { display: inline-block; width: 4rem }
pre { background: #8881; padding: .8rem; overflow: auto; max-height: 24rem } td, th { text-align: left; padding: .1rem .8rem .1rem 0 }
:root { color-scheme: light dark }
"""


@router.get("/docs", include_in_schema=False, response_class=HTMLResponse)
async def page(request: Request) -> HTMLResponse:
    document = request.app.openapi()
    operations = [
        _operation(method, path, told) for path, methods in sorted(document["paths"].items()) for method, told in methods.items()
    ]
    prefix = html.escape(request.scope.get("root_path", ""))
    schemas = [_details(name, "", schema) for name, schema in sorted(document["components"]["schemas"].items())]
    text = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(document["info"]["title"])}</title><style>{STYLE}</style>
<h1>{html.escape(document["info"]["title"])} {html.escape(document["info"]["version"])}</h1>
<p>{html.escape(document["info"].get("description", ""))} Programs read <a href="{prefix}/openapi.json">openapi.json</a>.
If the service has keys, send yours as <code>Authorization: Bearer KEY</code>.</p>
<pre>curl --data-binary @photo.jpg -H 'content-type: image/jpeg' {html.escape(str(request.base_url))}v1/embeddings</pre>
<h2>Routes</h2>{"".join(operations)}<h2>Schemas</h2>{"".join(schemas)}</html>"""
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


def _operation(method: str, path: str, told: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{html.escape(p['name'])}</code><td>{html.escape(p['in'])}"
        f"<td>{html.escape(_brief(p['schema']))}<td>{html.escape(p.get('description', ''))}"
        for p in told.get("parameters", [])
    )
    table = f"<table><tr><th>parameter<th>in<th>schema<th>meaning{rows}</table>" if rows else ""
    body = told.get("requestBody", {}).get("content", {})
    answers = {code: answer.get("description", "") for code, answer in told.get("responses", {}).items()}
    bodies = "".join(_details(kind, "body", content.get("schema", {})) for kind, content in body.items())
    listed = "".join(f"<tr><td>{html.escape(code)}<td>{html.escape(text)}" for code, text in answers.items())
    head = f"<b>{method.upper()}</b> <code>{html.escape(path)}</code>"
    about = html.escape(told.get("description") or told.get("summary", ""))
    return f"<details><summary>{head}</summary><p>{about}</p>{table}{bodies}<table>{listed}</table></details>"


def _brief(schema: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in schema.items() if key not in ("title", "description")})


def _details(name: str, note: str, schema: dict[str, Any]) -> str:
    text = html.escape(json.dumps(schema, indent=1))
    return f"<details><summary><code>{html.escape(name)}</code> {note}</summary><pre>{text}</pre></details>"
