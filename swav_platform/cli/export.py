"""swav export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swav_platform.cli import console
from swav_platform.errors import UsageError, UserError
from swav_platform.runs.folder import RunFolder, find

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("torchvision", "timm", "transformers", "onnx", "torch-export", "detectron2", "mmdet")


@click.command(
    epilog=console.examples(
        "swav export mine --to timm --folder mine-timm",
        "swav export mine --to onnx",
        "swav export mine --to onnx --int8",
        "swav export runs/mine/model --to onnx --int8 --data 'photos/*.tar'",
    )
)
@click.argument("source")
@click.option("--to", "form", required=True, type=click.Choice(FORMATS), help="Format of the export.")
@click.option("--folder", metavar="DIR", help="Folder of the export (default: NAME-FORMAT; for onnx, the package itself).")
@click.option("--int8", is_flag=True, help="Quantise to int8, with ranges from images (onnx only).")
@click.option("--data", multiple=True, metavar="PATTERN", help="Shards to calibrate on (default: the run's training data).")
@click.option("--calibration", default=48, show_default=True, type=click.IntRange(2), help="Images to calibrate on.")
@click.option("--out", metavar="DIR", help="Folder of the runs (default: SWAV_OUT, else ./runs).")
@console.json_option
def export_command(
    source: str,
    form: str,
    folder: str | None,
    int8: bool,
    data: tuple[str, ...],
    calibration: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Export the model of SOURCE, a run or the folder of a model package, to another format.

    The export is a folder with config.json, model.safetensors and a model card. onnx without --folder: stores the encoder in the
    package, where `swav serve` and `swav embed` find it.
    """
    run = None if (Path(source) / "model.json").is_file() else find(source, out)
    package = Path(source) if run is None else run.package
    if not (package / "model.json").is_file():
        raise UsageError(f"Run {source} has no model yet ({package}). Finish it with `swav pretrain … --resume`.")
    if form != "onnx" and (int8 or data):
        raise UsageError(f"--int8 and --data are for onnx, not for {form}. Leave them out.")
    if form != "onnx" or folder:
        if int8:
            raise UsageError("int8 is stored in the package, where the service checks it. Leave out --folder.")
        console.answer(_folder(source, run, package, form, folder, out), as_json)
        return
    result = _onnx(run, package, int8, data, calibration)
    if run is not None:
        run.publish("model")
    console.answer(result, as_json)


def _folder(source: str, run: RunFolder | None, package: Path, form: str, folder: str | None, out: str | None) -> dict[str, Any]:
    import json
    import shlex

    from swav_platform.models.exports.card import card, facts_of_package, facts_of_results, facts_of_run
    from swav_platform.models.exports.folder import export_folder

    meta = json.loads((package / "model.json").read_bytes())
    name = str(run.name if run else meta["name"])
    target = Path(folder).expanduser() if folder else Path(f"{name}-{form}")
    options = [*(["--folder", folder] if folder else []), *(["--out", out] if out else [])]
    command = shlex.join(["swav", "export", source, "--to", form, *options, "--json"])
    facts = facts_of_package(str(run.place) if run else source, package, meta)
    if run is not None:
        tree = run.config().model_dump(mode="json")
        facts += facts_of_run(str(run.place), tree, run.info(), run.summary())
        stored = sorted(run.fetched("evaluation").glob("*.json"))
        results = [tree for path in stored if isinstance(tree := json.loads(path.read_bytes()), dict) and "evaluation" in tree]
        facts += facts_of_results(results)
    console.say("Exporting and comparing features (some seconds).")
    return export_folder(package, form, target, lambda report: card(name, form, meta, report, facts, command))


def _onnx(run: RunFolder | None, package: Path, int8: bool, data: tuple[str, ...], calibration: int) -> dict[str, Any]:
    from swav_platform.models.exports.onnx import export_fp32, export_int8

    if not int8:
        console.say("Exporting the encoder (some seconds).")
        return export_fp32(package)
    if run is None and not data:
        raise UsageError("int8 needs images to calibrate on. Name shards with --data, or name the run instead of its package.")
    images = _images(run, package, data, calibration + max(1, calibration // 7))
    console.say(f"Exporting and calibrating on {calibration} images (up to a minute).")
    return export_int8(package, images)


def _images(run: RunFolder | None, package: Path, data: tuple[str, ...], count: int) -> np.ndarray:
    """Preprocessed images of the run or of `data`: float32 [count or fewer, 3, size, size]. A random choice by the run's seed."""
    import json
    import tempfile

    import numpy as np

    from swav_platform.config import ImagePolicy
    from swav_platform.data.datasets import open_index
    from swav_platform.data.index.build import build_index
    from swav_platform.data.index.lookup import Index
    from swav_platform.data.index.sources import expand
    from swav_platform.evaluation.features import batches, subset
    from swav_platform.models.package import preprocess

    size = int(json.loads((package / "model.json").read_bytes())["input_size"])
    settings = run.config() if run else None
    policy = settings.data.images if settings else ImagePolicy()
    with tempfile.TemporaryDirectory(prefix="swav-index-") as scratch:
        if data:
            build_index(expand(data), Path(scratch))
            index = Index.open(Path(scratch))
        else:
            assert run is not None
            index = open_index(run.info()["index"], allow_pipe=run.config().data.allow_pipe)
        chosen = subset(index, count, settings.seed if settings else 0)
        found = [preprocess(image, size).numpy() for batch in batches(index, chosen, policy) for image in batch.images]
    if len(found) < 2:
        raise UserError(f"{len(found)} images can be read for calibration, at least 2 are needed. Name other shards with --data.")
    return np.stack(found)
