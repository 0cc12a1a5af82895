from __future__ import annotations

import sys

import pytest
import torch

from swav_platform.config import Model
from swav_platform.errors import UsageError
from swav_platform.models import encoders, normalisation
from swav_platform.models.regnet import LINES, RegNet

REGNET = LINES["regnet_y_16gf"]


def test_regnet_has_the_published_size_and_torchvisions_names() -> None:
    assert REGNET.stages() == [(2, 224), (4, 448), (11, 1232), (1, 3024)]
    with torch.device("meta"):
        encoder = RegNet(REGNET)
    assert sum(p.numel() for p in encoder.parameters()) == 83_590_140 - 3025 * 1000  # torchvision's, without the classifier
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    assert shapes["stem.0.weight"] == (32, 3, 3, 3)
    assert shapes["trunk_output.block1.block1-0.proj.0.weight"] == (224, 32, 1, 1)
    assert shapes["trunk_output.block1.block1-0.f.se.fc1.weight"] == (8, 224, 1, 1)
    assert shapes["trunk_output.block2.block2-3.f.se.fc1.bias"] == (112,)
    assert shapes["trunk_output.block3.block3-10.f.b.0.weight"] == (1232, 112, 3, 3)
    assert shapes["trunk_output.block4.block4-0.f.c.1.running_var"] == (3024,)


def test_regnet_runs() -> None:
    small = type(REGNET)(depth=3, w_0=16, w_a=16, w_m=2, group=8)
    encoder = RegNet(small)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.feature_dim)


@pytest.mark.parametrize("name", ["resnet_tiny", "regnet"])
def test_checkpointing_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and collected batch statistics are bit-equal."""
    monkeypatch.setitem(LINES, "regnet", type(REGNET)(depth=3, w_0=16, w_a=16, w_m=2, group=8))
    found = []
    for checkpointing in (False, True):
        encoder = encoders.build_encoder(Model(name=name, stem="small", activation_checkpointing=checkpointing), seed=3)
        x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for part in x.split(3):
            encoder(part).square().sum().backward()
        found.append([*(p.grad for p in encoder.parameters()), normalisation.collect(encoder)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for checkpointing in (False, True):
        encoder = encoders.build_encoder(Model(name="resnet_tiny", stem="small", activation_checkpointing=checkpointing))
        sizes: dict[int, int] = {}

        def keep(t: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = encoder(torch.rand(8, 3, 32, 32))
        kept.append(sum(sizes.values()))
        del out
    assert kept[1] < 0.7 * kept[0]


def test_an_unknown_encoder_is_reported() -> None:
    with pytest.raises(UsageError, match=r"resnet51.*resnet50.*regnet_y_16gf.*timm"):
        encoders.check_name(Model(name="resnet51"))


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install --no-deps timm"):
        encoders.build_encoder(Model(name="timm/resnet10t"))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_an_encoder_of_timm(name: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed", exc_type=Exception)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = encoders.build_encoder(Model(name=f"timm/{name}"), seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    two = encoders.build_encoder(Model(name=f"timm/{name}"), seed=4)
    assert all(torch.equal(a, two.state_dict()[k]) for k, a in one.state_dict().items())
    for size in (96, 64):
        assert one(torch.rand(2, 3, size, size)).shape == (2, one.feature_dim)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in one.modules())


def test_an_unknown_timm_name_is_reported() -> None:
    pytest.importorskip("timm", reason="timm is not installed", exc_type=Exception)
    with pytest.raises(UsageError, match=r"resnet10tt.*resnet10t"):
        encoders.check_name(Model(name="timm/resnet10tt"))
