"""The table of settings: `swav pretrain --settings` and docs/settings.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swav_platform.cli.main import run
from swav_platform.config import known_keys
from swav_platform.config.setting import REQUIRED, Section, declaration, setting
from swav_platform.config.table import markdown, settings


def test_the_page_is_current(root: Path) -> None:
    page = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m swav_platform.config > docs/settings.md"


def test_every_key_is_a_setting_or_a_section() -> None:
    names = {each.setting for each in settings()}
    for key in known_keys():
        name = key.replace("views.large", "views.NAME").replace("views.small", "views.NAME")
        assert name in names or any(other.startswith(f"{name}.") for other in names), key


def test_the_command_prints_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--settings"]) == 0
    text = capsys.readouterr().out
    assert all(each.setting in text and each.meaning in text for each in settings())
    assert run(["pretrain", "--settings", "--json"]) == 0
    found = {each["setting"]: each for each in json.loads(capsys.readouterr().out)["settings"]}
    assert list(found) == [each.setting for each in settings()]
    batch = found["train.batch"]
    assert (batch["default"], batch["unit"], batch["changes_results"], batch["required"]) == (256, "images", "yes", False)
    assert found["views.NAME.size"]["required"]
    assert found["train.workers"]["changes_results"] == "rounding"


def test_a_run_still_needs_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain"]) == 2
    assert "CONFIG" in capsys.readouterr().err


def test_a_field_without_a_declaration_is_refused() -> None:
    class Half(Section):
        declared: int = setting(REQUIRED, "a number", unit="pixels", changes_results="no")
        undeclared: int = 3

    assert declaration(Half.model_fields["declared"]).unit == "pixels"
    with pytest.raises(TypeError, match="setting"):
        declaration(Half.model_fields["undeclared"])
