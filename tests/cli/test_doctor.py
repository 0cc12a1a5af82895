from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from swav_platform.cli import doctor, doctor_machine, doctor_packages

KEYS = {"ok", "problems", "python", "torch", "ray", "mlflow", "pillow", "simd", "codecs", "accelerators"}


def test_report_has_every_key_and_tells_what_is_here() -> None:
    done = CliRunner().invoke(doctor.doctor_command, ["--json"], standalone_mode=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= KEYS
    assert found["torch"]
    assert found["ray"]
    assert found["mlflow"]
    assert all(found["codecs"][name] for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff"))
    assert found["ok"] == (not found["problems"])
    assert done.return_value == (0 if found["ok"] else 1)


def test_missing_and_broken_packages_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {
        "torch": "import no_such_package_here",
        "ray": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "mlflow": "print('{}')",
        "simplejpeg": "print('{}')",
        "pillow": "raise SystemExit('no PIL')",
        "decoder": "raise SystemExit('no PIL')",
    }
    monkeypatch.setattr(doctor_packages, "_PROBES", probes)
    found = doctor.report()
    problems = " | ".join(item["problem"] for item in found["problems"])
    assert "torch can't be imported: ModuleNotFoundError" in problems
    assert "ray can't be imported: the process died of signal 4" in problems
    assert "pillow can't be imported: no PIL" in problems
    assert found["torch"] is None
    assert not any(found["codecs"].values())
    doctor.show(found)


def test_an_import_that_takes_too_long_is_not_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_packages, "_PROBES", dict.fromkeys(doctor_packages._PROBES, "import time; time.sleep(30)"))
    monkeypatch.setattr(doctor_packages, "TIMEOUT", 0.1)
    found = doctor.report()
    problems = " | ".join(item["problem"] for item in found["problems"])
    assert "torch took too long" in problems
    assert "can't be imported" not in problems
    doctor.show(found)
    shown = capsys.readouterr().out
    assert "took too long" in shown
    assert "missing" not in shown


def test_pillow_over_pillow_simd_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_packages, "version", {"pillow": "13.0.0", "pillow-simd": "12.1.1.post0"}.get)
    found = doctor_packages.Findings(facts={"pillow": "13.0.0"})
    doctor_packages._judge_pillow(found)
    (what, remedy) = found.problems[0]
    assert "13.0.0" in what
    assert "12.1.1.post0" in what
    assert "FORCE=1" in remedy


def test_codec_that_is_missing_is_a_problem_and_avif_a_note() -> None:
    found = doctor_packages.Findings(facts={"pillow": "1", "codecs": {"webp": False, "avif": False, "jpeg": True}})
    doctor_packages._judge_codecs(found)
    assert ["WEBP" in what for what, _ in found.problems] == [True]
    assert ["AVIF" in note for note in found.notes] == [True]


def test_addresses_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    found = doctor_machine.services()
    text = str(found.problems)
    assert "Ray at http://127.0.0.1:9" in text
    assert "MLflow at http://me:***@127.0.0.1:9" in text
    assert "secret" not in str(found)


def test_small_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_machine, "_free", lambda path: 64 * 2**20)
    monkeypatch.setattr(doctor_machine, "_memory", lambda: 2**30)
    text = str(doctor_machine.machine().problems)
    assert "/dev/shm has 0.06 GiB" in text
    assert "1.0 GiB of memory" in text
    assert str(tmp_path) in text
