"""What `auto` means on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo import config as dynamo

from swav_platform.config import load
from swav_platform.training.device import resolved

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU with bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    with dynamo.patch(suppress_errors=False):
        yield


def test_auto_follows_the_device() -> None:
    config = load(None, ["train.precision=auto"])
    on_cpu, on_gpu = resolved(config, CPU).train, resolved(config, GPU).train
    assert (on_cpu.precision, on_cpu.compile) == ("fp32", False)
    assert (on_gpu.precision, on_gpu.compile) == ("bf16", True)
    assert dynamo.suppress_errors, "without a compiler it runs uncompiled"


@pytest.mark.parametrize(
    "other",
    [
        ["model.activation_checkpointing=true"],
        ["train.shard=fsdp2"],
        ["model.normalisation=step", "train.workers=2", "data.row_size=64"],
    ],
    ids=str,
)
def test_it_does_not_compile_where_another_setting_excludes_it(other: list[str]) -> None:
    assert resolved(load(None, other), GPU).train.compile is False


def test_what_was_set_stays() -> None:
    config = load(None, ["train.precision=fp16", "train.compile=false"])
    assert resolved(config, GPU) == config
