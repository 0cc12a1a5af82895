"""Published figures beside ours, in percent. They are for ImageNet or VOC07 at full size: a scale, not a target for other data."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    value: float
    what: str
    source: str


_SWAV = "Caron et al. 2020"
_SELFSUP = "MMSelfSup, SwAV 200 epochs"

FIGURES: dict[str, Figure] = {
    "knn_top1": Figure(65.7, "SwAV 800 epochs, ImageNet, k 20", "Caron et al. 2021"),
    "linear_top1": Figure(75.3, "SwAV 800 epochs, ImageNet", _SWAV),
    "probes_feature1": Figure(16.98, "ImageNet", _SELFSUP),
    "probes_feature2": Figure(34.96, "ImageNet", _SELFSUP),
    "probes_feature3": Figure(49.26, "ImageNet", _SELFSUP),
    "probes_feature4": Figure(65.98, "ImageNet", _SELFSUP),
    "probes_feature5": Figure(70.74, "ImageNet", _SELFSUP),
    "svm_map": Figure(88.9, "SwAV 800 epochs, VOC07", _SWAV),
    "svm_map_k1": Figure(44.68, "VOC07", _SELFSUP),
    "svm_map_k2": Figure(55.41, "VOC07", _SELFSUP),
    "svm_map_k4": Figure(67.64, "VOC07", _SELFSUP),
    "svm_map_k8": Figure(73.67, "VOC07", _SELFSUP),
    "svm_map_k16": Figure(78.14, "VOC07", _SELFSUP),
    "svm_map_k32": Figure(81.58, "VOC07", _SELFSUP),
    "svm_map_k64": Figure(83.98, "VOC07", _SELFSUP),
    "svm_map_k96": Figure(85.15, "VOC07", _SELFSUP),
    "semi_top1_1_percent": Figure(53.9, "SwAV 800 epochs, ImageNet", _SWAV),
    "semi_top5_1_percent": Figure(78.5, "SwAV 800 epochs, ImageNet", _SWAV),
    "semi_top1_10_percent": Figure(70.2, "SwAV 800 epochs, ImageNet", _SWAV),
    "semi_top5_10_percent": Figure(89.9, "SwAV 800 epochs, ImageNet", _SWAV),
}
