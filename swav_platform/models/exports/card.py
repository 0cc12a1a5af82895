"""A model card from facts alone. Every number has the command that gives it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav_platform.models.exports.frameworks import load_lines


class Fact(NamedTuple):
    what: str
    value: str
    command: str  # that prints it again


def facts_of_package(source: str, package: Path, meta: Mapping[str, Any]) -> list[Fact]:
    """What the package itself says. source: what the user calls the model, or the place of its run."""

    def python(expression: str) -> str:
        return f"""python -c "import swav_platform as s; m = s.load('{source}'); print({expression})\""""

    model = meta["model"]
    facts = [
        Fact("encoder", f"{model['name']}, stem {model['stem']}", _of_json(package / "model.json", "['model']")),
        Fact("features", str(meta["feature_dim"]), python("m.dim")),
        Fact("input", f"{meta['input_size']} px", python("m.input_size")),
        Fact("prototypes", str(meta["prototypes"]), _of_json(package / "model.json", "['prototypes']")),
        Fact("digest", _digest(package), python("m.digest")),
    ]
    if imported := meta.get("source"):
        facts += [
            Fact("imported from", f"{imported['file']} (names of {imported['kind']})", f"swav import {imported['file']}"),
            Fact("sha256 of that file", imported["sha256"], f"sha256sum {imported['file']}"),
            Fact("licence", imported["licence"], _of_json(package / "model.json", "['source']['licence']")),
        ]
    return facts


def facts_of_run(place: str, config: Mapping[str, Any], info: Mapping[str, Any], summary: Mapping[str, Any] | None) -> list[Fact]:
    """How the run learned. place: its folder or URL."""

    def python(expression: str) -> str:
        return f"""python -c "from swav_platform.runs.folder import find; r = find('{place}'); print(r.{expression})\""""

    facts = [
        Fact("method", str(config["method"]["name"]), python("config().method.name")),
        Fact("seed", str(config["seed"]), python("config().seed")),
        Fact("training images", f"{info['samples']:,}", python("info()['samples']")),
        Fact("index digest", str(info["index_digest"]), python("info()['index_digest']")),
        Fact("images of a step", f"{config['train']['batch']:,}", python("config().train.batch")),
    ]
    if summary:
        facts.append(Fact("steps", f"{summary['steps']:,}", python("summary()['steps']")))
    return facts


def facts_of_results(results: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """Figures of stored evaluations, in percent."""
    facts = []
    for result in results:
        prefix = f"{result['evaluation']}_"
        for name, value in result.items():
            if name.startswith(prefix) and isinstance(value, int | float):
                facts.append(Fact(name, f"{value:g} (n = {result['test']:,})", str(result["command"])))
    return facts


def card(title: str, target: str, meta: Mapping[str, Any], report: Mapping[str, Any], facts: Sequence[Fact], command: str) -> str:
    """README.md of an export."""
    licence = str(meta.get("source", {}).get("licence", "unknown"))
    front = f"---\nlibrary_name: {target}\nlicense: {licence.lower()}\npipeline_tag: image-feature-extraction\n---\n"
    every = [*facts, Fact("cosine to the package, random inputs", f"{report['cosine']:.7f}", command)]
    rows = "\n".join(f"| {_cell(fact.what)} | {_cell(fact.value)} | `{_cell(fact.command)}` |" for fact in every)
    return (
        f"{front}\n# {title}\n\nAn image encoder without a classifier: one vector per image.\n\n"
        f"```python\n{load_lines(target, meta, str(report['out']))}\n```\n\n"
        f"Pixels: RGB in 0 … 1, the shorter side resized to 8/7 of the input (above 64 px), centre crop, then minus "
        f"{list(meta['mean'])}, divided by {list(meta['std'])}.\n\n"
        f"| fact | value | command |\n|---|---|---|\n{rows}\n"
    )


def _of_json(path: Path, keys: str) -> str:
    return f"""python -c "import json; print(json.load(open('{path}')){keys})\""""


def _digest(package: Path) -> str:
    from swav_platform.models.package import package_digest

    return package_digest(package)


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|").replace('\\"', '"')
