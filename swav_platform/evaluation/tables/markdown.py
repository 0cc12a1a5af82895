"""Records as Markdown tables beside published figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swav_platform.evaluation.tables.record import metrics_of

_HEADER = ["evaluation", "ours", "random init", "published", "train / test", "seeds or draws"]


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """One row per metric: ours with its spread, the same network at random initialisation, the published figure."""
    return grid(_HEADER, [row for result in results for row in _rows(result)])


def report(title: str, results: Sequence[Mapping[str, Any]], transfer: Sequence[Mapping[str, Any]] = ()) -> str:
    """A page: the table, transfer to other data sets, and how each figure was made."""
    first = results[0] if results else transfer[0]
    parts = [
        f"# {title}",
        f"Model `{first['model']}`, digest `{first['digest']}`, method {first['method']}. {first['hardware']}. In percent; ± is the "
        f"standard deviation over seeds or draws, (a to b) the 95 % interval for the sampling of test images. Published figures are for "
        f"ImageNet or VOC07, not for this data.",
    ]
    if results:
        parts.append(table(results))
    if transfer:
        parts += ["## Transfer", transfer_table(transfer)]
    made = [
        [r["evaluation"], r.get("data", ""), f"{r['seconds']:g}", f"`{json.dumps(r['options'])}`"] for r in (*results, *transfer)
    ]
    parts += ["## How", f"`{first['command']}`", grid(["evaluation", "data", "seconds", "options"], made)]
    return "\n\n".join(parts) + "\n"


def transfer_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One row per data set."""
    names = list(dict.fromkeys(str(r["data"]) for r in results))
    kinds = list(dict.fromkeys(str(r["evaluation"]) for r in results))
    columns = [f"{kind}_top1" for kind in kinds]
    rows = []
    for name in names:
        own = {str(r["evaluation"]): r for r in results if r["data"] == name}
        shown = [_with_spread(own[kind], column) if kind in own else "" for kind, column in zip(kinds, columns, strict=True)]
        sizes = next(iter(own.values()))
        rows.append([name, *shown, f"{sizes['train']:,} / {sizes['test']:,}", str(sizes["classes"])])
    return grid(["data", *columns, "train / test", "classes"], rows)


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name in metrics_of(result):
        if name.endswith("_random_init"):
            continue
        random, published = result.get(f"{name}_random_init"), result["published"].get(name)
        rows.append(
            [
                name.replace("_", " "),
                _with_spread(result, name),
                "" if random is None else f"{random:g}",
                f"{published['value']:g} ({published['what']}; {published['source']})" if published else "",
                f"{result['train']:,} / {result['test']:,}",
                str(_repetitions(result, name)),
            ]
        )
    return rows


def _with_spread(result: Mapping[str, Any], name: str) -> str:
    if (spread := result["spread"].get(name)) is not None:
        return f"{result[name]:g} ± {spread:g}"
    if (interval := result["interval"].get(name)) is not None:
        return f"{result[name]:g} ({interval[0]:g} to {interval[1]:g})"
    return f"{result[name]:g}"


def _repetitions(result: Mapping[str, Any], name: str) -> int:
    if name not in result["spread"]:
        return 1
    return int(result["options"].get("draws", 0)) if "map_k" in name else len(result["seeds"])
