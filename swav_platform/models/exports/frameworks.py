"""config.json for each framework, and the lines that load the folder there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swav_platform.errors import UserError
from swav_platform.models import resnet
from swav_platform.models.encoders import TIMM

_STANDARD = ("resnet18", "resnet34", "resnet50", "resnet101")  # widths that every framework has
_LOAD = {
    "torchvision": """import torchvision
from safetensors.torch import load_file
model = torchvision.models.{name}()
model.fc = torch.nn.Identity()
model.load_state_dict(load_file("{folder}/model.safetensors"))""",
    "timm": """import timm
model = timm.create_model("local-dir:{folder}", pretrained=True)""",
    "transformers": """from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}")  # features: model(pixels).pooler_output""",
    "onnx": """import onnxruntime
session = onnxruntime.InferenceSession("{folder}/model.onnx")  # images [n, 3, H, W] to features [n, D]""",
    "torch-export": """model = torch.export.load("{folder}/model.pt2").module()""",
    "detectron2": """cfg.MODEL.WEIGHTS = "{folder}/model.pkl"
cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "RGB", False  # mean and deviation: 255 times those below""",
    "mmdet": """init_cfg = dict(type="Pretrained", checkpoint="{folder}/model.pth")""",
}


def check(target: str, model: Mapping[str, Any]) -> None:
    """Raises UserError if a framework has no such encoder. torch-export and onnx take any."""
    name, stem = str(model["name"]), str(model["stem"])
    if target in ("torch-export", "onnx") or (target in ("timm", "transformers") and name.startswith(TIMM)):
        return
    if name not in resnet.SHAPES or stem != "imagenet":
        what = f"{name} with the small stem" if name in resnet.SHAPES else name
        raise UserError(f"{target} has no {what}. Export it with --to torch-export or --to onnx.")
    if target != "transformers" and name not in _STANDARD:
        raise UserError(
            f"{target} has no {name}, only {', '.join(_STANDARD)}. Export it with --to transformers or --to torch-export."
        )


def config_of(target: str, meta: Mapping[str, Any], licence: str) -> dict[str, dict[str, Any]]:
    """Content of config.json, and of other JSON files that the framework wants, by file name."""
    model = meta["model"]
    name, size = str(model["name"]), int(meta["input_size"])
    mean, std = list(meta["mean"]), list(meta["std"])
    if target == "timm" or (target == "transformers" and name.startswith(TIMM)):
        return {"config.json": _timm(target, name.removeprefix(TIMM), meta, licence)}
    if target == "transformers":
        processor = {
            "image_processor_type": "ConvNextImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": size},
            "crop_pct": 0.875,
            "resample": 2,
            "do_rescale": True,
            "do_normalize": True,
            "image_mean": mean,
            "image_std": std,
        }
        return {"config.json": _transformers(name), "preprocessor_config.json": processor}
    plain = {
        "framework": target,
        "architecture": name,
        "num_classes": 0,
        "num_features": meta["feature_dim"],
        "input_size": [3, size, size],
        "resize": round(size * 8 / 7) if size > 64 else size,
        "mean": mean,
        "std": std,
    }
    return {"config.json": plain}


def load_lines(target: str, meta: Mapping[str, Any], folder: str) -> str:
    """Python that loads the folder."""
    lines = _LOAD[target].format(name=meta["model"]["name"], folder=folder)
    return f"import torch\n{lines}" if target in ("torchvision", "torch-export") else lines


def _timm(target: str, architecture: str, meta: Mapping[str, Any], licence: str) -> dict[str, Any]:
    size = int(meta["input_size"])
    pretrained = {
        "tag": str(meta["name"]),
        "num_classes": 0,
        "input_size": [3, size, size],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "mean": list(meta["mean"]),
        "std": list(meta["std"]),
        "license": licence,
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": meta["feature_dim"],
        "pretrained_cfg": pretrained,
    }
    if target == "transformers":
        config |= {"architectures": ["TimmWrapperModel"], "model_type": "timm_wrapper", "do_pooling": True}
    return config


def _transformers(name: str) -> dict[str, Any]:
    shape = resnet.SHAPES[name]
    expansion = 4 if shape.bottleneck else 1
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": shape.width,
        "hidden_sizes": [shape.width * 2**i * expansion for i in range(len(shape.blocks))],
        "depths": list(shape.blocks),
        "layer_type": "bottleneck" if shape.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "torch_dtype": "float32",
    }
