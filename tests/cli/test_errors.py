"""Wrong use and bad input: one paragraph, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from swav_platform.cli.main import run, swav
from swav_platform.config import load, load_with
from swav_platform.errors import UserError
from swav_platform.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWAV_DEBUG", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("SWAV_OUT", str(tmp_path / "runs"))


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *said: str) -> None:
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in said:
        assert part in error


def preset(root: Path) -> str:
    return str(root / "configs" / "pretrain" / "cifar10_cpu.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretend"], ["'pretend'", "Did you mean pretrain?", "`swav --help`"]),
        (["zzz"], ["'zzz'", "demo, index"]),
        (["--verson"], ["Did you mean --version?"]),
        (["evaluate", "knm"], ["Did you mean knn?", "`swav evaluate --help`"]),
        (["pack", "x", "--ouut", "y"], ["'--ouut'", "Did you mean --out?", "`swav pack --help`"]),
        (["pack", "--out", "y"], ["Missing argument 'FOLDER'"]),
        (["pack", "x", "--out"], ["'--out' requires an argument"]),
        (["query", "photos"], ["embeddings", "neighbors"]),
        (["evaluate", "knn", "x", "--bank", "a", "--query", "b", "--bank-size", "-5"], ["--bank-size", "-5"]),
        (["evaluate", "knn", "x", "--bank", "a", "--query", "b", "--query-size", "0"], ["--query-size"]),
        (["query", "neighbors", "missing.jpg"], ["'missing.jpg'", "No such file"]),
        (["query", "models", "--url", "nonsense"], ["'nonsense'", "http://127.0.0.1:8000"]),
        (["ledger", "--check", "nothere"], ["nothere", "data.sample_log"]),
        (["list", "--address", "ray://head:10001"], ["ray://head:10001", "http://head:8265"]),
    ],
)
def test_wrong_use_is_one_paragraph(arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("swav: ")
    assert len(told.err.splitlines()) == 1
    assert not told.out
    for part in said:
        assert part in told.err


@pytest.mark.parametrize(
    "verb",
    [["demo"], ["pack"], ["index"], ["pretrain"], ["evaluate", "knn"], ["embed"], ["serve"], ["query"], ["submit"]],
)
def test_examples_of_the_help_are_commands(verb: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb, "--help"]) == 0
    lines = capsys.readouterr().out.partition("Examples:\n")[2].splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[: len(verb) + 1] == ["swav", *verb]
        command, arguments = swav, words[1:]
        for _ in verb:
            _, found, arguments = command.resolve_command(click.Context(command), arguments)
            command = found
        command.make_context(" ".join(verb), arguments)  # raises for an option that is not known
        assert all((root / word).is_file() for word in words if word.endswith(".yaml"))


def test_config_with_a_typo(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "x.tar", "train.stepz=1"], 2, "train.stepz", "train.steps")


def test_two_ways_to_stop_early(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "x.tar", "--dry-run", "--preview", "v.html"], 2, "--dry-run and --preview")


def test_source_with_a_typo(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typing = ["pretrain", preset(root), "data.sources=[a.tar, {pattern: b.tar, wieght: 2}]"]
    fails(capsys, typing, 2, "'data.sources.1.wieght'", "'data.sources.1.weight'")


@pytest.mark.parametrize(
    ("option", "key"),
    [("--data", "data.sources=[b.tar]"), ("--data", "data.index=ix"), ("--name", "run.name=m"), ("--out", "run.out=there")],
)
def test_one_thing_said_twice(root: Path, capsys: pytest.CaptureFixture[str], option: str, key: str) -> None:
    fails(capsys, ["pretrain", preset(root), option, "a.tar", key], 2, option, key.partition("=")[0])


def test_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", "none.yaml", "--data", "x.tar"], 2, "none.yaml")


def test_shell_expanded_pattern(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "a.tar", "b.tar"], 2, "b.tar", "quote")


@pytest.mark.parametrize("pattern", ["/no/such/folder", "no-such-*.tar", "missing.tar"])
def test_pattern_without_a_match(root: Path, capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", pattern, "--name", "n"], 2, pattern)
    fails(capsys, ["index", pattern, "--out", "ix"], 2, pattern)


def test_tar_that_is_no_tar(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.tar").write_text("<html>404</html>" * 100)
    fails(capsys, ["index", "page.tar", "--out", "ix"], 1, "page.tar")


def test_no_data_leaves_no_run_behind(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain = ["pretrain", preset(root), "--name", "n"]
    fails(capsys, pretrain, 2, "--data")
    fails(capsys, [*pretrain, "--data", "missing-*.tar"], 2, "missing-*.tar")
    fails(capsys, [*pretrain, "data.index=nothere"], 2, "nothere", "swav index")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["mlflow.db", "mlartifacts", ".", "..", "../n", "n/", "a/b", "a:b", ".n"])
def test_names_that_no_run_may_have(name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", "x.tar", "--name", name], 2, "run.name", repr(name))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["pretrain", "submit"])
@pytest.mark.parametrize("name", ["x" * 201, "é" * 101, "猫" * 67])
def test_names_over_200_bytes(
    command: str, name: str, root: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, [command, preset(root), "--data", str(shards), "--name", name], 2, "run.name", "at most 200")
    for key in ("tracking.model", "tracking.experiment"):
        fails(capsys, [command, preset(root), "--data", str(shards), f"{key}={name}"], 2, key, "at most 200")
    assert not (tmp_path / "runs").exists()
    assert load(None, [f"run.name={name[:-1]}"]).run.name == name[:-1]


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("data.sources=[https://me:hush@host/a.tar]", "data.sources=[]"),
        ("data.sources=['https://host/{0..9}.tar?X-Amz-Signature=hush']", "data.sources=[]"),
        ("data.sources=[{pattern: \"pipe:curl -H 'Authorization: Bearer hush' https://h/x\", weight: 2}]", "data.sources=[]"),
        ("tracking.uri=http://me:hush@mlflow:5000", "MLFLOW_TRACKING_URI"),
        ("data.index=https://me:hush@host/index", "data.index="),
    ],
)
def test_settings_without_their_passwords_are_not_used(
    setting: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.write(load(None, [setting]), index=folder.index, index_digest="d", samples=1)
    key = setting.partition("=")[0]
    fails(capsys, ["pretrain", "runs/r/config.yaml", "--resume"], 2, key, "***", remedy)
    fails(capsys, ["submit", "runs/r/config.yaml"], 2, key, "***", remedy)
    given = load_with(folder.path / "config.yaml", ["tracking.uri=null", "data.sources=[]", "data.index=null"])
    assert (given.data.sources, given.tracking.uri, given.data.index) == ((), None, None)


def test_no_permission(root: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["pretrain", preset(root), "--data", str(shards), "--out", "/proc/nothing", "--name", "n"], 1, "/proc/nothing")


def test_unknown_run(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["ledger", "nobody"],
        ["embed", "nobody"],
        ["evaluate", "knn", "nobody", "--bank", "a", "--query", "b"],
        ["serve", "nobody"],
    ):
        fails(capsys, arguments, 2, "nobody")


def test_ray_address_that_does_not_answer(
    root: Path, shards: Path, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(capsys, ["submit", preset(root), "--data", str(shards), "--address", "http://127.0.0.1:9"], 1, "127.0.0.1:9")
    fails(capsys, ["list", "--address", "http://127.0.0.1:9"], 1, "127.0.0.1:9")


def test_ray_cluster_that_does_not_answer(
    root: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    fails(capsys, ["pretrain", preset(root), "--data", str(shards), "--name", "n"], 1, "127.0.0.1:9", "RAY_ADDRESS")
    assert not (tmp_path / "runs").exists(), "nothing is begun"


def test_wrong_names_leave_nothing_behind(root: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain = ["pretrain", preset(root), "--data", str(shards)]
    fails(capsys, [*pretrain, "--name", "n", "model.name=resnet51"], 2, "resnet51", "resnet50")
    fails(capsys, [*pretrain, "--name", "n", "method.name=dino"], 2, "dino", "swav")
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_checkpoint_restarts(
    root: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from swav_platform.cluster import session
    from swav_platform.runs.folder import RunFolder

    def no_ray(config: object) -> None:
        raise UserError("Ray is away.")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(session, "connected", no_ray)
    pretrain = ["pretrain", preset(root), "--data", str(shards), "--name", "n"]
    (tmp_path / "runs" / "nn").mkdir(parents=True)
    (tmp_path / "runs" / "nn" / "run.json").touch()
    fails(capsys, [*pretrain, "--resume"], 1, "Ray is away")
    assert "Run n is new" in caplog.text
    assert "Did you mean nn?" in caplog.text
    assert "not recorded in MLflow yet" in caplog.text, "tracking that is away costs a warning"
    folder = RunFolder(tmp_path / "runs" / "n")
    first = json.loads((folder.path / "tracking.json").read_text())["uid"]
    fails(capsys, [*pretrain, "method.epsilon=0.1", "method.queue_length=200"], 1, "Ray is away")
    assert "restarts from step 0" in caplog.text
    assert "method.queue_length=200" in caplog.text, "preflight warnings come at the start"
    assert json.loads((folder.path / "tracking.json").read_text())["uid"] != first, "another run"
    assert (folder.info()["run_id"], folder.config().method.epsilon) == (None, 0.1)

    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "connected", interrupted)
    fails(capsys, pretrain, 130, "Interrupted")
    assert "the next start is from step 0" in caplog.text
    (folder.path / "summary.json").write_text("{}")
    fails(capsys, pretrain, 2, "--resume")
    (folder.path / "summary.json").write_text("{")
    fails(capsys, [*pretrain, "--resume"], 1, "summary.json can't be read", "Delete it")


def test_paths_of_this_machine_are_refused_for_another_cluster(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--address", "http://head.invalid:8265"]  # never contacted before paths are checked
    fails(capsys, ["submit", preset(root), "--data", "a-*.tar", *there], 2, "'a-*.tar' is a path on this machine", "head.invalid")
    fails(capsys, ["submit", preset(root), "--data", "/d/a.tar", "--out", "runs", *there], 2, "'runs' is a path on this machine")


def test_service_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    fails(capsys, ["query", "embeddings", "x.jpg", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9")


@pytest.mark.parametrize("taken", [True, False])
def test_serve_is_refused_before_anything_heavy_is_read(taken: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if taken else 0
        code = f"""
import sys
from swav_platform.cli.main import run
print(run(["serve", {("model" if taken else "nobody")!r}, "--port", "{port}"]))
print([name for name in ("torch", "fastapi", "mlflow", "pyarrow") if name in sys.modules])
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=_with_us(), capture_output=True, text=True)
    assert done.stdout.splitlines() == (["1", "[]"] if taken else ["2", "[]"])
    assert (f"Port {port}" if taken else "'nobody'") in done.stderr


def _with_us() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def test_a_run_without_a_model_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "half" / "run.json").write_text("{}")
    fails(capsys, ["serve", "half", "--port", "0"], 2, "half has no model", "--resume")


def test_a_fault_of_ours_shows_its_traceback_only_with_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import swav_platform.runs.folder

    def broken(run: str, out: str | None = None) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(swav_platform.runs.folder, "find", broken)
    fails(capsys, ["ledger", "x"], 1, "boom", "--debug")
    with pytest.raises(RuntimeError):
        run(["ledger", "x", "--debug"])


def test_pages_go_to_html_files_only(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"mine")
    for command in (["pretrain", preset(root), "--data", "x.tar", "--preview"], ["ledger", "nobody", "--html"]):
        fails(capsys, [*command, str(photo)], 2, ".html")
    assert photo.read_bytes() == b"mine"


def test_recipes_of_the_project_are_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(
        capsys,
        ["pretrain", "configs/pretrain/small.yaml", "--data", "x.tar"],
        2,
        f"recipe of that name: {root / 'configs' / 'pretrain' / 'small.yaml'}",
    )
