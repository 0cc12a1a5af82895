"""swav evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from swav_platform.atomic import write_text
from swav_platform.cli.evaluations import several, single
from swav_platform.cli.evaluations.options import steps_done
from swav_platform.runs.folder import RunFolder


@click.group()
def evaluate_command() -> None:
    """Evaluate an encoder on labelled shards. Labels never influence pretraining."""


for _command in (*single.COMMANDS, *several.COMMANDS):
    evaluate_command.add_command(_command)


def record_knn(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Stores a result in the run's folder and in MLflow, at the last step of the run."""
    from swav_platform.evaluation.knn import results_file
    from swav_platform.registry import log_evaluation, uri_of_run

    write_text(results_file(folder), json.dumps(result))
    folder.publish("evaluation/knn.json")
    log_evaluation(folder, uri_of_run(folder), {"eval/knn_top1": result["knn_top1"]}, step=steps_done(folder))
