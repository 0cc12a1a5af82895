"""Checks that the installed packages work. Each import runs in its own process, so that a package that is missing, broken or
built for another CPU is reported as a problem."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

REINSTALL = "make setup FORCE=1"
LATER = "the machine is busy or its disk is slow; try again later"
TIMEOUT = 180.0  # seconds for one import; a cold disk is slow

# Each prints one JSON object as its last line.
_PROBES = {
    "torch": """
import json, torch
cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
devices = [
    {"kind": "cuda", "name": d.name, "memory_gib": round(d.total_memory / 2**30, 1), "capability": f"{d.major}.{d.minor}"}
    for d in devices
]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "accelerators": devices}))""",
    "ray": "import json, ray; print(json.dumps({'version': ray.__version__}))",
    "mlflow": "import json, mlflow; print(json.dumps({'version': mlflow.__version__}))",
    "simplejpeg": "import json, simplejpeg; print(json.dumps({'version': simplejpeg.__version__}))",
    "pillow": """
import io, json, PIL
from PIL import Image, features
if not features.check("avif"):
    try:
        import pillow_avif
    except ImportError:
        pass
codecs = {}
for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
    try:
        buffer = io.BytesIO()
        Image.linear_gradient("L").convert("RGB").save(buffer, name)
        image = Image.open(io.BytesIO(buffer.getvalue()))
        codecs[name.lower()] = image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC).size == (32, 32)
    except Exception:
        codecs[name.lower()] = False
print(json.dumps({"version": PIL.__version__, "codecs": codecs}))""",
    "decoder": """
import io, json
from PIL import Image
from swav_platform.config import ImagePolicy
from swav_platform.images.decoding.decode import codec_fingerprint, decode
buffer = io.BytesIO()
Image.new("RGB", (32, 32), (9, 9, 9)).save(buffer, "PNG")
assert decode(buffer.getvalue(), ImagePolicy()).max() == 9
print(json.dumps({"version": codec_fingerprint()}))""",
}
_CODECS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
_SPARE_CODECS = ("avif",)  # optional: without it such images go to the ledger


@dataclass(frozen=True)
class Findings:
    """`facts` go into the report; `problems` are pairs (problem, remedy); `notes` do not change the exit code."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def packages() -> Findings:
    """Versions of the main packages, working codecs, accelerators that torch finds."""
    with ThreadPoolExecutor(len(_PROBES)) as pool:
        answers = dict(zip(_PROBES, pool.map(_probe, _PROBES.values()), strict=True))
    found = Findings(facts={name: answer.get("version") for name, answer in answers.items()})
    for name, answer in answers.items():
        if "late" in answer:
            found.problems.append((f"{name} took too long: not imported within {answer['late']:.0f} s", LATER))
        elif "error" in answer and name == "decoder":
            found.problems.append(
                (f"images can't be decoded: {answer['error']}", "see docs/security.md: decoding needs a process of its own")
            )
        elif "error" in answer:
            found.problems.append((f"{name} can't be imported: {answer['error']}", REINSTALL))
    found.facts["late"] = [name for name, answer in answers.items() if "late" in answer]
    found.facts["accelerators"] = answers["torch"].get("accelerators", [])
    found.facts["torch_cuda"] = answers["torch"].get("cuda")
    found.facts["codecs"] = dict.fromkeys(_CODECS, False) | answers["pillow"].get("codecs", {})
    _judge_codecs(found)
    _judge_pillow(found)
    _judge_versions(found)
    return found


def _probe(code: str) -> Mapping[str, Any]:
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"late": TIMEOUT}
    except OSError as error:
        return {"error": str(error)}
    if done.returncode < 0:
        return {"error": f"the process died of signal {-done.returncode} (4: built for another CPU)"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    answer: Mapping[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _judge_codecs(found: Findings) -> None:
    if found.facts["pillow"] is None:
        return
    for name, works in found.facts["codecs"].items():
        if works:
            continue
        if name in _SPARE_CODECS:
            found.notes.append(f"{name.upper()} can't be decoded: such images go to the ledger as unsupported_format.")
        else:
            remedy = f"install the header packages of docs/install.md, then {REINSTALL}"
            found.problems.append((f"Pillow can't decode {name.upper()}", remedy))


def _judge_pillow(found: Findings) -> None:
    stock, simd = version("pillow"), version("pillow-simd")
    working = found.facts["pillow"]
    found.facts["pillow_build"] = None if working is None else "pillow-simd" if "post" in working else "stock"
    if stock and simd:
        remedy = f"{REINSTALL}, and install the package that requires it with --no-deps (docs/dependencies.md)"
        found.problems.append((f"pillow {stock} and pillow-simd {simd} share one folder; version {working} is active", remedy))
    elif working and found.facts["pillow_build"] == "stock":
        remedy = f"headers of docs/install.md, then {REINSTALL}"
        found.notes.append(f"Stock Pillow resizes several times slower than pillow-simd: {remedy}.")


def _judge_versions(found: Findings) -> None:
    """Compares installed versions with the project's requirements."""
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(text) for text in metadata.requires("swav-platform") or []]
    except metadata.PackageNotFoundError:
        found.problems.append(("swav-platform itself is not installed in this environment", REINSTALL))
        return
    except ImportError as error:
        found.problems.append((str(error), REINSTALL))
        return
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = version(requirement.name)
        if have is None:
            found.problems.append((f"{requirement.name} is not installed", REINSTALL))
        elif not requirement.specifier.contains(have, prereleases=True):
            found.problems.append((f"{requirement.name} is {have}; {requirement.specifier} is required", REINSTALL))


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
