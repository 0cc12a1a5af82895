"""Plans from the command line: one feature pass, results with all their facts, comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from swav_platform.cli.evaluate import evaluate_command
from swav_platform.config import Config, from_tree
from swav_platform.errors import UsageError, UserError
from swav_platform.evaluation.frozen import store, taps
from swav_platform.evaluation.plan import read_plan
from swav_platform.methods.swav import Swav
from swav_platform.models.encoders import build_encoder
from swav_platform.models.package import save_package
from swav_platform.runs.folder import RunFolder
from tests.conftest import picture
from tests.makers import write_tar

MODEL = {"name": "resnet_tiny", "stem": "small", "projection_hidden": 16, "projection_dim": 8}
CONFIG = {"views": {"large": {"size": 16, "count": 2, "scale": (0.3, 1)}}, "model": MODEL, "method": {"prototypes": 6}}


def make_package(folder: Path, seed: int = 3, method: str = "swav") -> tuple[Path, Config]:
    config = from_tree({**CONFIG, "method": {"name": method, "prototypes": 6}, "seed": seed})
    network = Swav(config).modules(build_encoder(config.model, seed))
    names = {"name": "cats", "run": "", "run_id": None, "index_digest": "d", "codec": "c"}
    return save_package(folder, network.state_dict(), config, **names), config


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("p") / "package")[0]


@pytest.fixture
def sides(shards: Path) -> list[str]:
    first, second = sorted(map(str, shards.glob("*.tar")))
    return ["--train", first, "--test", second]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images in the batches that feature passes read."""
    found: list[int] = []
    read = store.batches

    def counted(*arguments: Any) -> Any:
        for batch in read(*arguments):
            found.append(len(batch.images))
            yield batch

    monkeypatch.setattr(store, "batches", counted)
    return found


def run(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate_command, [str(a) for a in arguments], catch_exceptions=True)


def answer(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


PLAN = {
    "seeds": 2,
    "evaluations": {
        "knn": {"k": [5, 1]},
        "linear": {"costs": [0.1]},
        "probes": {"size": 30, "epochs": 3},
        "svm": {"costs": [1.0], "shots": [1], "draws": 2},
        "clusters": None,
        "retrieval": {"queries": 20},
        "semi": {"fractions": [0.1], "epochs": 1},
        "finetune": {"epochs": 1},
    },
}


def test_all_with_one_pass(package: Path, sides: list[str], shards: Path, tmp_path: Path, decoded: list[int]) -> None:
    plan = PLAN | {"transfer": [{"name": "again", "train": sides[1], "test": sides[3]}], "data": {"label": "folder"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    found = answer("all", package, tmp_path / "plan.yaml", *sides, "--to", tmp_path / "out")
    assert sum(decoded) == 320, "80 images of each side for all evaluations, and again for the other data set, without maps"
    results = found["results"]
    assert list(results) == list(PLAN["evaluations"])  # type: ignore[call-overload]
    assert results["knn"]["knn_top1"] == results["knn"]["knn_top1_k5_t0.1"]
    assert results["linear"]["linear_top1"] > 60, "colours tell the groups"
    assert [len(results["svm"]["spread"]), results["probes"]["train"], results["knn"]["classes"]] == [1, 30, 4]
    assert {f"probes_{name}" for name in taps.POOLED} <= set(results["probes"])
    assert {"clusters_kmeans_nmi", "clusters_prototypes_purity", "clusters_kmeans_nmi_random_init"} <= set(results["clusters"])
    assert "clusters_prototypes_nmi_random_init" not in results["clusters"]
    assert {"semi_top1_10_percent", "semi_top5_10_percent"} <= set(results["semi"])
    assert results["finetune"]["seeds"] == [31, 32]
    for result in results.values():
        assert {"spread", "interval", "train", "test", "hardware", "command", "digest", "options", "refused", "published"} <= set(
            result
        )
    page = Path(found["report"]).read_text()
    assert "| linear top1 |" in page
    assert "75.3 (SwAV 800 epochs, ImageNet; Caron et al. 2020)" in page
    assert "| again |" in page
    assert json.loads((tmp_path / "out" / "knn.json").read_text()) == results["knn"]

    decoded.clear()
    again = answer("all", package, tmp_path / "plan.yaml", *sides, "--to", tmp_path / "out")
    assert decoded == [], "the features are stored"
    assert again["results"]["linear"]["linear_top1"] == results["linear"]["linear_top1"]


def test_an_interrupted_pass_goes_on(
    package: Path, sides: list[str], tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART", 32)
    whole = answer("knn", package, *sides, "--to", tmp_path / "out", "--no-random-init")
    parts = sorted((tmp_path / "out" / "features").glob("*/part-*.npz"))
    assert len(parts) == 6
    parts[1].unlink()
    decoded.clear()
    assert answer("knn", package, *sides, "--to", tmp_path / "out", "--no-random-init")["knn_top1"] == whole["knn_top1"]
    assert sum(decoded) == 32


def test_earlier_options_and_keys_of_knn(package: Path, sides: list[str], tmp_path: Path) -> None:
    old = ["--bank", sides[1], "--query", sides[3], "--bank-size", 40, "--query-size", 30]
    found = answer("knn", package, *old, "--k", 3, "--temperature", 0.2, "--to", tmp_path)
    assert (found["bank"], found["query"], found["k"], found["temperature"]) == (40, 30, 3, 0.2)
    assert {"knn_top1", "knn_top1_random_init", "refused"} <= set(found)


def test_maps_are_those_of_the_stages(package: Path) -> None:
    encoder = build_encoder(Config.model_validate(CONFIG).model, 1)
    images = [np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8) for i in range(3)]
    found = taps.extractor(encoder, 16)(images, True)
    from swav_platform.models.package import preprocess

    x = torch.stack([preprocess(image, 16) for image in images])
    with torch.inference_mode():
        stem = torch.relu(encoder.bn1(encoder.conv1(x)))  # type: ignore[operator]
        last = encoder.layer4(encoder.layer3(encoder.layer2(encoder.layer1(stem))))  # type: ignore[operator]
    assert np.allclose(found["feature1"], torch.nn.functional.adaptive_avg_pool2d(stem, 12).flatten(1), atol=1e-2)
    assert np.allclose(found["feature5"], torch.nn.functional.adaptive_avg_pool2d(last, 2).flatten(1), atol=1e-2)
    assert np.allclose(found["features"], last.mean((2, 3)), atol=1e-5)


def test_several_labels_from_a_list(package: Path, sides: list[str], tmp_path: Path, shards: Path) -> None:
    lines = [f"group{i % 4}/{n}-{i:03d}\tgroup{i % 4},{'even' if i % 2 == 0 else 'odd'}" for n in range(2) for i in range(60)]
    (tmp_path / "labels.tsv").write_text("\n".join(lines))
    found = answer(
        "svm", package, *sides, "--labels", tmp_path / "labels.tsv", "--cost", 1.0, "--shots", 1, "--to", tmp_path / "o"
    )
    assert found["svm_map"] > 60
    assert "svm_top1" not in found
    assert found["classes"] == 6
    (tmp_path / "labels.tsv").write_text("nobody\tcat\n")
    with pytest.raises(UserError, match="No key of the train images"):
        answer("svm", package, *sides, "--labels", tmp_path / "labels.tsv", "--to", tmp_path / "o")


def test_a_split_by_list(package: Path, sides: list[str], tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("".join(f"group{i % 4}/0-{i:03d}.jpg\n" for i in range(12)))
    given = ["semi", package, *sides, "--fraction", 0.01, "--epochs", 1, "--to", tmp_path / "o", "--list"]
    assert "semi_top1_1_percent" in answer(*given, f"0.01={tmp_path}/few.txt")
    (tmp_path / "few.txt").write_text("nobody\n")
    with pytest.raises(UserError, match="No key of the training images"):
        answer(*given, f"0.01={tmp_path}/few.txt")


def test_errors_say_what_is_wrong(package: Path, sides: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labels under 'cls'"):
        answer("knn", package, *sides, "--label", "cls", "--to", tmp_path)
    bad = write_tar(tmp_path / "bad.tar", [("a/0.jpg", b"no image")])
    with pytest.raises(UserError, match=r"No train image .*1 not_an_image"):
        answer("linear", package, "--train", bad, *sides[2:], "--to", tmp_path)
    rng = np.random.default_rng(0)
    alone = write_tar(tmp_path / "alone.tar", [(f"one/{i}.jpg", picture(rng, 1)) for i in range(4)])
    with pytest.raises(UserError, match="All training images have the label 'one'"):
        answer("svm", package, "--train", alone, *sides[2:], "--to", tmp_path)
    (tmp_path / "plan.yaml").write_text("data: {train: a, test: b}\nevaluations: {linaer: {}}\n")
    with pytest.raises(UsageError, match="linaer"):
        read_plan(tmp_path / "plan.yaml")
    with pytest.raises(UsageError, match="NAME=TRAIN,TEST"):
        answer("transfer", package, "--data", "flowers.tar")


def finished(runs: Path, name: str, method: str, seed: int) -> RunFolder:
    folder = RunFolder(runs / name)
    _, config = make_package(folder.path / "model", seed, method)
    folder.write(config, index=runs / "index", index_digest="d" * 16, samples=8)
    folder.write_summary({"steps": 5})
    return folder


def test_classes_that_one_side_does_not_have(package: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (
        write_tar(tmp_path / f"{names}.tar", [(f"{name}/{i}.jpg", picture(rng, i)) for name in names for i in range(6)])
        for names in ("abc", "cde")
    )
    tree = {"knn": None, "linear": None, "svm": {"shots": [1]}, "clusters": None, "retrieval": None}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"data": {"label": "folder"}, "evaluations": tree}))
    found = answer("all", package, tmp_path / "plan.yaml", "--train", train, "--test", test, "--to", tmp_path / "o")["results"]
    assert all(0 <= found[name][f"{name}_top1"] <= 100 / 3 + 0.01 for name in ("knn", "linear", "svm"))
    assert found["clusters"]["clusters_kmeans_used"] == 3


def test_runs_are_compared_by_method(sides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[dict[str, float], int]] = []
    monkeypatch.setattr("swav_platform.registry.log_evaluation", lambda folder, uri, metrics, step: sent.append((metrics, step)))
    for name, method, seed in (("a-1", "swav", 1), ("a-2", "swav", 2), ("b-1", "simclr", 1)):
        finished(tmp_path, name, method, seed)
        answer("knn", name, *sides, "--out", tmp_path, "--test-size", 40)
    assert sent[0][1] == 5
    assert set(sent[0][0]) == {"eval/knn_top1", "eval/knn_top1_random_init"}
    found = answer("compare", "a-1", "a-2", "b-1", "--out", tmp_path)
    assert found["unequal"] == []
    swav, simclr = found["methods"]["swav"]["knn_top1"], found["methods"]["simclr"]["knn_top1"]
    assert (swav["runs"], simclr["runs"]) == (2, 1)
    assert swav["low"] <= swav["mean"] <= swav["high"]
    assert simclr["low"] < simclr["mean"] <= simclr["high"]
    table = run("compare", "a-1", "a-2", "b-1", "--out", tmp_path).output
    assert "| swav | 2 |" in table
    finished(tmp_path, "c-1", "sela", 1).write_summary({"steps": 9})
    with pytest.raises(UsageError, match="no results yet"):
        answer("compare", "c-1", "--out", tmp_path)
    answer("knn", "c-1", *sides, "--out", tmp_path)
    unequal = answer("compare", "a-1", "c-1", "--out", tmp_path)["unequal"]
    assert [line.split(":")[0] for line in unequal] == ["budget", "test"]


def test_every_plan_of_the_project_is_valid(root: Path) -> None:
    found = [
        read_plan(path, train="a.tar", test="b.tar")
        for path in (root / "configs/evaluate").glob("*.yaml")
        if "detectron2" not in path.name
    ]
    assert len(found) == 3
