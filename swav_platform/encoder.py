"""The Python API: a trained encoder that embeds images and assigns them to clusters."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swav_platform.config import ImagePolicy
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.errors import UsageError, UserError
from swav_platform.images.decoding.decode import decode
from swav_platform.images.decoding.orientation import upright
from swav_platform.images.decoding.pillow import orientation, to_rgb
from swav_platform.images.decoding.refused import Refused, check_size
from swav_platform.locate import locate
from swav_platform.models.inference import Assignment, Encoded, InferenceModel, load_for_inference

ImageInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A file, an image file's content, a Pillow image, or pixels as a uint8 array [height, width, 3] in RGB order."""

BATCH = 64  # images in one forward pass
DECODERS = 4  # threads


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
        index: position in the list of images.
        source: the path, or a description of the input.
        outcome: the reason, from the closed list of outcomes (for example `Outcome.TRUNCATED`).
        detail: the decoder's explanation.
    """

    def __init__(self, index: int, source: str, outcome: Outcome, detail: str) -> None:
        super().__init__(f"images[{index}] ({source}) cannot be used: {outcome.word}: {detail}")
        self.index = index
        self.source = source
        self.outcome = outcome
        self.detail = detail


class Encoder:
    """A trained encoder. `load` creates it.

    All methods that take images take a list of them. Each image is a path, the content of an image file (`bytes`),
    a Pillow image, or a uint8 RGB array `[height, width, 3]`. Images are decoded, resized, cropped and normalised
    as in `swav embed` and the embeddings service, and the results are the same vectors.
    """

    def __init__(self, model: InferenceModel, policy: ImagePolicy | None = None) -> None:
        """policy: limits on image size and format; the platform's defaults if not given."""
        self._model = model
        self._policy = policy or ImagePolicy()

    def __repr__(self) -> str:
        return f"Encoder(name={self.name!r}, dim={self.dim}, prototypes={len(self._model.prototypes)}, digest={self.digest!r})"

    @property
    def name(self) -> str:
        """Name of the model, as registered."""
        return self._model.name

    @property
    def digest(self) -> str:
        """16 hex digits that identify the weights and settings; the service reports the same digest."""
        return self._model.digest

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._model.feature_dim

    @property
    def input_size(self) -> int:
        """Height and width of the input of `module`, in pixels."""
        return self._model.input_size

    @property
    def module(self) -> nn.Module:
        """The backbone in evaluation mode: float32 [n, 3, input_size, input_size] -> [n, dim], not normalised."""
        return self._model.encoder

    def to(self, device: str | torch.device) -> Encoder:
        """Moves the weights to `device` and returns self."""
        self._model.to(device)
        return self

    def transform(self, image: ImageInput) -> Tensor:
        """The input of `module` for one image: float32 [3, input_size, input_size] on the CPU.

        Raises ImageError for an image that cannot be used, and TypeError for any other kind of object.
        """
        return self._prepare(0, image)

    def embed(self, images: list[ImageInput]) -> np.ndarray:
        """Unit-length embeddings: float32 [n, dim], in the order of `images`.

        Raises ImageError for the first image that cannot be used, and TypeError unless `images` is a list or tuple.
        """
        parts = [batch.features for batch in self._encode(images)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def clusters(self, images: list[ImageInput], top: int = 1) -> Assignment:
        """The `top` nearest prototypes of each image: `clusters`, `scores` (cosines) and `probabilities`, each [n, top].

        Probabilities are the softmax of cosine / temperature over all prototypes. With fewer than `top` prototypes the
        arrays have one column for each prototype. Raises UsageError for a model without prototypes, ValueError for
        `top` below 1, and otherwise as `embed`.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if not len(self._model.prototypes):
            raise UsageError(
                f"The model {self.name} has no clusters: its method trains no prototypes. Use embed(), or load a model of a "
                f"method with prototypes, such as swav."
            )
        parts = [batch.projections for batch in self._encode(images)]
        projections = np.concatenate(parts) if parts else np.zeros((0, self._model.projection_dim), np.float32)
        return self._model.assign(projections, top)

    def _encode(self, images: list[ImageInput]) -> Iterator[Encoded]:
        """Vectors in batches; threads decode the next batch while the model runs."""
        if not isinstance(images, list | tuple):
            raise TypeError(f"images must be a list of images, not {type(images).__name__}; for one image pass [image]")
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:

            def submit(start: int) -> list[Future[Tensor]]:
                batch = enumerate(images[start : start + BATCH], start)
                return [pool.submit(self._prepare, index, image) for index, image in batch]

            following = submit(0)
            for start in range(0, len(images), BATCH):
                pending, following = following, submit(start + BATCH)
                try:
                    pixels = torch.stack([future.result() for future in pending])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                yield self._model.encode(pixels)

    def _prepare(self, index: int, image: ImageInput) -> Tensor:
        try:
            return self._model.preprocess(_pixels(index, image, self._policy))
        except Refused as refused:
            raise ImageError(index, _describe(image), refused.outcome, refused.detail) from None
        except MemoryError:
            raise ImageError(index, _describe(image), Outcome.DECODE_MEMORY, "not enough memory to decode it") from None


def _pixels(index: int, image: ImageInput, policy: ImagePolicy) -> np.ndarray:
    """RGB pixels uint8 [H, W, 3]. Raises Refused, or TypeError for an object that is no image."""
    if isinstance(image, bytes):
        return decode(image, policy)
    if isinstance(image, str | os.PathLike):
        return decode(_read(Path(image), policy), policy)
    if isinstance(image, Image.Image):
        check_size(*image.size, policy)
        try:
            image.load()
            return upright(to_rgb(image), orientation(image))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow loads lazily, so a damaged file fails here
            raise Refused(Outcome.CORRUPT, f"{type(error).__name__}: {error}") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(
                f"images[{index}] must be a uint8 array [height, width, 3], not {image.dtype} with shape {list(image.shape)}"
            )
        check_size(image.shape[1], image.shape[0], policy)
        return image
    raise TypeError(f"images[{index}] must be a path, bytes, a Pillow image or a NumPy array, not {type(image).__name__}")


def _read(path: Path, policy: ImagePolicy) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(policy.max_bytes + 1)  # one more byte lets the decoder see that the file is too large
    except OSError as error:
        raise Refused(Outcome.READ_ERROR, error.strerror or str(error)) from None


def _describe(image: ImageInput) -> str:
    if isinstance(image, bytes):
        return f"{len(image)} bytes"
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        return f"Pillow image of {image.width}x{image.height} pixels"
    return f"array of {image.shape[1]}x{image.shape[0]} pixels"


def load(
    source: str | os.PathLike[str],
    *,
    out: str | None = None,
    tracking_uri: str | None = None,
    device: str | torch.device = "cpu",
    runtime: str = "torch",
) -> Encoder:
    """Loads a trained encoder.

    Args:
        source: a run (its name or folder), the folder of a model package, or an MLflow URI: `models:/NAME@alias`,
            `models:/NAME/3` or `runs:/ID/model`.
        out: folder of the runs, for a run's name; default `SWAV_OUT`, else `./runs`.
        tracking_uri: MLflow server or store that knows the URI; default `MLFLOW_TRACKING_URI`, else the store of the
            runs in `out`.
        device: where the model runs, for example `"cuda"`.
        runtime: how it runs: `torch`, `compile` (GPUs), `bf16`, `onnx` (CPUs), `int8` (CPUs, after `swav export`), or
            `auto`, which measures and takes the fastest of float32 and bfloat16.

    A run's encoder applies the run's own limits on images (`data.images`), any other one the defaults.
    Raises UsageError if there is no such run or package, and UserError if it cannot be downloaded or loaded.
    """
    with tempfile.TemporaryDirectory(prefix="swav-model-") as scratch:
        found = locate(os.fspath(source), Path(scratch), out=out, tracking_uri=tracking_uri)
        policy = None if found.run is None else found.run.config().data.images
        return Encoder(load_for_inference(found.package, runtime, device=str(device)), policy)
