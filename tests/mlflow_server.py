"""A real MLflow server for tests, which can die and come back at the same address."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

NOISE = re.compile(r"alembic|mlflow\.(?!db)|🏃|🧪|Downloading artifacts|Registered model|it/s\]|\bINFO\b", re.IGNORECASE)
"""What MLflow and its libraries print, which users of `swav` must not see."""

STARTS_WITHIN = 180.0  # seconds; two thirds of a start are imports


@dataclass
class MlflowServer:
    """backend, artifacts: where the server stores; by default in `folder`. It keeps both when it is stopped."""

    folder: Path
    backend: str = ""
    artifacts: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> MlflowServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = self.port or _free_port()
        command = [
            str(Path(sys.executable).with_name("mlflow")),
            "server",
            "--host=127.0.0.1",
            f"--port={self.port}",
            "--workers=1",
        ]
        command += [f"--backend-store-uri={self.backend or f'sqlite:///{self.folder}/server.db'}"]
        command += [f"--artifacts-destination={self.artifacts or self.folder / 'artifacts'}"]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", **self.environment}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"MLflow did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        return self

    def stop(self) -> None:
        """As a crash does: all processes of the server, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
