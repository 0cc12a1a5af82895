"""The encoder of a package as an ONNX file, in float32 or statically quantised to int8.

`stored.py` keeps them in the package.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from swav_platform.atomic import replacing
from swav_platform.errors import UserError
from swav_platform.models.exports.stored import store, stored
from swav_platform.models.package import Package, load_package, package_digest
from swav_platform.models.reference import probe
from swav_platform.models.runtimes.eager import torch_runtime
from swav_platform.models.runtimes.onnx_session import INPUT, OUTPUT, onnx_runtime
from swav_platform.models.runtimes.runtime import PARITY, cosines

OPSET = 18
CALIBRATION = 48  # images; more change the cosine in the fourth decimal only


def write_onnx(encoder: nn.Module, input_size: int, path: Path) -> Path:
    """Writes the encoder: images [n, 3, input_size, input_size] to features [n, D], with n free."""
    example = torch.zeros(2, 3, input_size, input_size)
    plain = encoder.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as aside, _quiet():
            torch.onnx.export(
                plain,
                (example,),
                str(aside),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=False,
                verbose=False,
            )
    except (OSError, UserError):
        raise
    except Exception as error:  # torch.onnx raises many kinds; the first line names the operator
        reason = str(error).strip().split("\n", 1)[0][:300]
        raise UserError(f"The encoder can't be exported to ONNX ({reason}). Use the runtime torch for this model.") from error
    finally:
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return path


def export_fp32(folder: Path) -> dict[str, Any]:
    """Stores the encoder of the package `folder` in the package, in float32. Raises UserError if parity does not hold."""
    package = load_package(folder)
    with tempfile.TemporaryDirectory(prefix="swav-onnx-") as scratch:
        path = write_onnx(package.encoder, int(package.meta["input_size"]), Path(scratch) / "encoder.onnx")
        images = probe(int(package.meta["input_size"]))
        return _keep(folder, path, "fp32", package, images, images)


def export_int8(folder: Path, images: np.ndarray) -> dict[str, Any]:
    """Quantises the encoder of the package `folder` and stores the result in the package.

    images: preprocessed float32 [n, 3, H, W] of the run, n >= 2. The last eighth (at least one) measures parity, the others
    calibrate. QDQ format, weights per channel, ranges by minimum and maximum.
    Raises UserError if the cosine to float32 is below PARITY["int8"]; the package then keeps what it had.
    """
    held = max(1, len(images) // 8)
    package = load_package(folder)
    size = int(package.meta["input_size"])
    with tempfile.TemporaryDirectory(prefix="swav-onnx-") as scratch:
        export = stored(folder, "fp32", package_digest(folder))
        full = export.path if export else write_onnx(package.encoder, size, Path(scratch) / "encoder.onnx")
        small = _quantise(full, Path(scratch) / "encoder.int8.onnx", images[:-held])
        return _keep(folder, small, "int8", package, images[-held:], probe(size))


def _keep(folder: Path, path: Path, precision: str, package: Package, unseen: np.ndarray, probed: np.ndarray) -> dict[str, Any]:
    runtime, exact = onnx_runtime(path, precision=precision), torch_runtime(package.encoder)
    found = float(cosines(runtime(unseen), exact(unseen)).min())
    if found < PARITY[precision]:
        raise UserError(
            f"The {precision} encoder differs too much from torch's: the cosine is {found:.4f} on {len(unseen)} images, and "
            f"{PARITY[precision]} is needed. Calibrate on more images (--calibration), or use another runtime."
        )
    content, model = path.read_bytes(), package_digest(folder)
    kept = store(folder, precision, content, model=model, cosine=found, probe=runtime(probed))
    return {"format": "onnx", "precision": precision, "cosine": round(found, 6), "bytes": len(content), "out": str(kept)}


def _quantise(full: Path, small: Path, images: np.ndarray) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {INPUT: image[None]}

    prepared = small.with_name("prepared.onnx")
    with _quiet():
        quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(small),
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return small


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporters' progress and their notes about optional packages. Exceptions pass."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
