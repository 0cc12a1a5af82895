from __future__ import annotations

import pytest
import torch

from swav_platform.config import Model
from swav_platform.errors import UsageError
from swav_platform.models.encoders import build_encoder
from swav_platform.models.resnet import SHAPES, ResNet


@pytest.mark.parametrize(("stem", "stride", "places"), [("imagenet", 1, 4), ("small", 1, 1), ("small", 2, 2)])
def test_features_and_stem(stem: str, stride: int, places: int) -> None:
    encoder = build_encoder(Model(name="resnet_tiny", stem=stem, stem_stride=stride))
    seen = []
    encoder.layer1.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.feature_dim)
    assert seen == [(2, 32, 32 // places, 32 // places)]


def test_the_tiny_one_is_tiny() -> None:
    encoder = build_encoder(Model(name="resnet_tiny", stem="small"))
    assert encoder.feature_dim == 256
    assert 1.1e6 < sum(p.numel() for p in encoder.parameters()) < 1.3e6


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [("resnet18", 11_176_512, 512), ("resnet50", 23_508_032, 2048), ("resnet50w2", 93_907_072, 4096)],
)
def test_sizes_are_the_published_ones(name: str, parameters: int, dim: int) -> None:
    with torch.device("meta"):
        encoder = ResNet(SHAPES[name], "imagenet", 1)
    assert (sum(p.numel() for p in encoder.parameters()), encoder.feature_dim) == (parameters, dim)


def test_names_are_torchvisions() -> None:
    names = set(build_encoder(Model(name="resnet18")).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv2.weight", "layer2.0.downsample.1.num_batches_tracked"} <= names
    assert len(names) == 120  # torchvision's 122 without fc


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = build_encoder(Model(name="resnet_tiny"), seed=4).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    two = build_encoder(Model(name="resnet_tiny"), seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = build_encoder(Model(name="resnet_tiny"), seed=5).state_dict()
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
    fan_out = 64 * 9
    assert one["layer2.0.conv2.weight"].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


def test_an_unknown_encoder_is_reported() -> None:
    with pytest.raises(UsageError, match=r"resnet51.*resnet50"):
        build_encoder(Model(name="resnet51"))


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet50w4", "resnet50w5"])
def test_other_sizes(name: str) -> None:
    """Parameters in millions, as in torchvision without the classifier (34, 101) and as published for the wider ones."""
    with torch.device("meta"):
        encoder = ResNet(SHAPES[name], "imagenet", 1)
    millions = {"resnet34": 21.284672, "resnet101": 42.500160, "resnet50w4": 375.4, "resnet50w5": 586.4}[name]
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
