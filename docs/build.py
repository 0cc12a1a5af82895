"""Builds the documentation site: `python docs/build.py [--out build]`.

README becomes the start page, the public Python API becomes `api.md`, and Zensical builds everything in strict mode.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]

PUBLIC = (
    "swav_platform.load",
    "swav_platform.Encoder",
    "swav_platform.encoder.ImageError",
    "swav_platform.client.Client",
    "swav_platform.client.AsyncClient",
    "swav_platform.Method",
    "swav_platform.methods.method.RowOutputs",
    "swav_platform.methods.method.StepOutputs",
)
"""What users may import, in the order of the page."""

STARS = {"variadic positional": "*", "variadic keyword": "**"}

_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def start_page(readme: str) -> str:
    """README as a page of the site: links to docs/ stay links, links to other files of the tree become plain text."""

    def relink(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if "://" in target or target.startswith("#"):
            return found[0]
        return f"[{text}]({target.removeprefix('docs/')})" if target.startswith("docs/") else text

    return _LINK.sub(relink, readme)


def api_page(root: Path, public: tuple[str, ...] = PUBLIC) -> str:
    """Signatures and docstrings of the public API, read from the source without importing it."""
    package = griffe.load("swav_platform", search_paths=[root], try_relative_path=False, allow_inspection=False)
    found = (package[name.removeprefix("swav_platform.")] for name in public)
    return "# Python API\n\n" + "\n".join(_entry(item, name) for item, name in zip(found, public, strict=True))


def _entry(item: griffe.Object | griffe.Alias, name: str) -> str:
    item = item.final_target if isinstance(item, griffe.Alias) else item
    parts = [f"## {name}\n\n{_described(item)}"]
    if isinstance(item, griffe.Class):
        public = [member for member in item.members.values() if not member.name.startswith("_")]
        methods = [member for member in public if isinstance(member, griffe.Function)]
        parts += [f"### {item.name}.{member.name}\n\n{_described(member)}" for member in methods]
        parts += [_fields([member for member in public if isinstance(member, griffe.Attribute) and member.annotation])]
    return "\n".join(parts)


def _described(item: griffe.Object) -> str:
    return f"```python\n{_signature(item)}\n```\n\n{_text(item)}\n"


def _text(item: griffe.Object) -> str:
    """The docstring as Markdown; sections such as `Args:` become lists."""
    parts = []
    for section in item.docstring.parse("google", warnings=False) if item.docstring else ():
        if isinstance(section.value, str):
            parts.append(section.value)
        elif section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
            parts.append("\n".join(f"- `{entry.name}`: {' '.join(entry.description.split())}" for entry in section.value))
    return "\n\n".join(parts)


def _fields(fields: list[griffe.Attribute]) -> str:
    rows = [f"| `{field.name}` | `{field.annotation}` | {' '.join(_text(field).split())} |" for field in fields]
    return (
        "\n".join(["| attribute | type | |", "|---|---|---|", *(row.replace(" | None", " \\| None") for row in rows), ""])
        if rows
        else ""
    )


def _signature(item: griffe.Object) -> str:
    if isinstance(item, griffe.Class):
        initial = item.members.get("__init__")
        return f"class {item.name}" + (_arguments(initial) if isinstance(initial, griffe.Function) else "")
    assert isinstance(item, griffe.Function)
    return f"def {item.name}{_arguments(item)}" + (f" -> {item.returns}" if item.returns else "")


def _arguments(function: griffe.Function) -> str:
    parts, starred = [], False
    for parameter in function.parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and not starred:
            parts.append("*")
        starred |= parameter.kind in (griffe.ParameterKind.keyword_only, griffe.ParameterKind.var_positional)
        stars = STARS.get(str(parameter.kind), "")
        kind = f": {parameter.annotation}" if parameter.annotation else ""
        default = f" = {parameter.default}" if parameter.default and not stars else ""
        parts.append(f"{stars}{parameter.name}{kind}{default}")
    line = f"({', '.join(parts)})"
    return line if len(line) <= 50 else "(\n    " + ",\n    ".join(parts) + ",\n)"


def build(out: Path) -> None:
    """Writes OUT/pages and OUT/site. Raises CalledProcessError for a broken link or anchor."""
    pages = out / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.rmtree(out / "site", ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (pages / "index.md").write_text(start_page((ROOT / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
    (pages / "api.md").write_text(api_page(ROOT), encoding="utf-8")
    shutil.copy(ROOT / "mkdocs.yml", out / "mkdocs.yml")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=out, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the documentation site in strict mode.")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder for pages/ and site/ (default: build)")
    arguments = parser.parse_args()
    try:
        build(arguments.out)
    except subprocess.CalledProcessError:
        sys.exit("The site has broken links or anchors, listed above.")
    print(arguments.out / "site" / "index.html")


if __name__ == "__main__":
    main()
