"""Runs, metrics and models in MLflow. No other package imports mlflow.

One rule: trouble with tracking costs a warning and is repaired later. It never ends, blocks or falsifies a run.
"""

from swav_platform.registry.card import Card, read_card
from swav_platform.registry.connect import tracking_uri, uri_of_run
from swav_platform.registry.errors import TrackingError
from swav_platform.registry.lifecycle import begin, close, complete, log_evaluation
from swav_platform.registry.models import download_package, register_package, resolve_version, set_alias
from swav_platform.registry.runs import end_run, start_run
from swav_platform.registry.system import node_metrics
from swav_platform.registry.tracker import Tracker

__all__ = [
    "Card",
    "Tracker",
    "TrackingError",
    "begin",
    "close",
    "complete",
    "download_package",
    "end_run",
    "log_evaluation",
    "node_metrics",
    "read_card",
    "register_package",
    "resolve_version",
    "set_alias",
    "start_run",
    "tracking_uri",
    "uri_of_run",
]
