"""swav doctor: reports installed packages and the machine, with problems and remedies."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from typing import Any

import click

from swav_platform.cli.doctor_machine import machine, nvidia_driver, services
from swav_platform.cli.doctor_packages import packages


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
def doctor_command(as_json: bool) -> int:
    """Check installed packages, the machine, and the Ray and MLflow of the environment.

    Each problem has a remedy. The exit code is 1 if there is a problem.
    """
    found = report()
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found)
    return 0 if found["ok"] else 1


def report() -> dict[str, Any]:
    """Keys `ok, problems, python, torch, ray, mlflow, pillow, simd, codecs, accelerators` and others.

    `problems` is a list of {problem, remedy}; `ok` is true if it is empty. A package that can't be imported has version None.
    """
    parts = [packages(), machine(), services()]
    facts = {name: value for part in parts for name, value in part.facts.items()}
    problems = [*_judge_accelerators(facts), *(item for part in parts for item in part.problems)]
    return {
        "ok": not problems,
        "problems": [{"problem": what, "remedy": remedy} for what, remedy in problems],
        "python": platform.python_version(),
        "torch": facts["torch"],
        "ray": facts["ray"],
        "mlflow": facts["mlflow"],
        "pillow": facts["pillow"],
        "simd": {"cpu": facts["cpu"], "pillow": facts["pillow_build"], "simplejpeg": facts["simplejpeg"]},
        "codecs": facts["codecs"],
        "codec": facts["decoder"],
        "accelerators": facts["accelerators"],
        "machine": facts["machine"],
        "ray_cluster": facts["ray_cluster"],
        "tracking": facts["tracking"],
        "late": facts["late"],
        "notes": [note for part in parts for note in part.notes],
        "executable": sys.executable,
    }


def _judge_accelerators(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    if facts["accelerators"] or facts["torch"] is None or not nvidia_driver():
        return []
    if facts["torch_cuda"] is None:
        remedy = "make clean, then make setup with a package index that has the CUDA build"
        return [(f"there is an NVIDIA driver, but torch {facts['torch']} is a build for the CPU", remedy)]
    seen = f"there is an NVIDIA driver, but torch (CUDA {facts['torch_cuda']}) sees no device"
    return [(seen, "check nvidia-smi: the driver may be too old for this CUDA version")]


def show(found: Mapping[str, Any]) -> None:
    """Prints the report as a table, then problems, then notes."""
    from rich.console import Console  # imported here, so that --json works without rich
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _lines(found):
        table.add_row(f"[bold]{name}[/]", value)
    console.print(table)
    for item in found["problems"]:
        console.print(f"[red]problem[/]  {item['problem']}\n[red]remedy[/]   {item['remedy']}", highlight=False)
    for note in found["notes"]:
        console.print(f"[yellow]note[/]     {note}", highlight=False)
    console.print("[green]No problems found.[/]" if found["ok"] else f"[red]{len(found['problems'])} problems.[/]")


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    here, simd = found["machine"], found["simd"]
    codecs = [name if works else f"[red]no {name}[/]" for name, works in found["codecs"].items()]
    devices = [f"{a['name']} ({a['memory_gib']} GiB)" for a in found["accelerators"]]

    def version(name: str, value: str | None) -> str:
        return value or ("[red]took too long[/]" if name in found["late"] else "[red]missing[/]")

    return [
        *((name, version(name, found[name])) for name in ("python", "torch", "ray", "mlflow")),
        ("pillow", f"{version('pillow', found['pillow'])} ({simd['pillow'] or '-'})"),
        ("simplejpeg", version("simplejpeg", simd["simplejpeg"])),
        ("codecs", ", ".join(codecs)),
        ("decoders", found["codec"] or "[red]none[/]"),
        ("accelerators", ", ".join(devices) or "none"),
        ("cpu", f"{here['cores']} cores, {simd['cpu'] or 'no SIMD known'}"),
        ("memory", f"{here['memory_gib']} GiB, /dev/shm {here['shm_gib']} GiB, disk {here['disk_free_gib']} GiB free"),
        ("open files", f"{here['open_files']['soft']}, at most {here['open_files']['hard']}"),
        ("Ray cluster", found["ray_cluster"]["address"] or found["ray_cluster"]["local"] or "none (runs start a local one)"),
        ("MLflow", found["tracking"]["uri"] or "none set (runs track in SQLite)"),
    ]
