"""The child that decodes risky bytes: what it has, what it can't do, and what becomes of an image that it does not survive."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav_platform import child_process
from swav_platform.config import ImagePolicy, load
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.confined import NoDecoderError
from swav_platform.images.decoding.decode import decode, thumbnail
from swav_platform.images.decoding.refused import Refused
from swav_platform.rows.make import make_row
from tests.makers import encoded

POLICY = ImagePolicy()


def png(value: int = 7, side: int = 32) -> bytes:
    return encoded(Image.new("RGB", (side, side), (value, value, value)), "PNG")


def process() -> int:
    return confined._here.child.pid


@pytest.fixture(autouse=True)
def own_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "_here", threading.local())


def hostile(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """From now on children run `code` in place of Pillow, on a thing called data."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    before_main(
        monkeypatch,
        f"import ctypes, json, socket, time\n"
        f"from swav_platform.images.decoding import child, refused\n"
        f"def bad(data, name, policy):\n{body}\n"
        f"child.give_up = lambda memory, real=child.give_up: (setattr(child, 'with_pillow', bad), real(memory))\n",
    )


def before_main(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """From now on children run `code` before their own."""
    head, tail = child_process._START.split("from importlib")
    code = code.replace("{", "{{").replace("}", "}}")
    monkeypatch.setattr(child_process, "_START", f"{head}\n{code}\nfrom importlib{tail}")


def refused(data: bytes, policy: ImagePolicy = POLICY) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(data, policy)
    return caught.value


def test_it_sees_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    assert decode(png(), POLICY).max() == 7
    assert Path(f"/proc/{process()}/environ").read_bytes() == b""
    assert "Seccomp:\t2" in Path(f"/proc/{process()}/status").read_text()
    assert Path(f"/proc/{process()}/cwd").resolve() == Path("/")
    assert {int(name) for name in os.listdir(f"/proc/{process()}/fd")} == {0, 1, 2}


WAYS_OUT = {
    "the parent's environment": "open('/proc/<parent>/environ', 'rb')",
    "a file": "open('<file>')",
    "whether a file is there": "os.stat('<file>')",
    "what a link names": "os.readlink('/proc/<parent>/cwd')",
    "a file gone": "os.unlink('<file>')",
    "a file emptied": "os.truncate('<file>', 0)",
    "a file elsewhere": "os.rename('<file>', '<file>.2')",
    "a file's other name": "os.link('<file>', '<file>.2')",
    "a file for all": "os.chmod('<file>', 0o777)",
    "a file's time": "os.utime('<file>', (1, 1))",
    "a folder": "os.mkdir('<file>.d')",
    "a socket": "socket.socket()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a process": "os._exit(3) if os.fork() == 0 else None",
    "more files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)); os.dup(0)",
    "a signal to its parent": "os.kill(<parent>, 0)",
    "a signal to its parent's thread": "if ctypes.CDLL(None).tgkill(<parent>, <parent>, 0): raise PermissionError",
}


@pytest.mark.stack
@pytest.mark.parametrize("what", WAYS_OUT)
def test_it_has_no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str) -> None:
    file = tmp_path / "checkpoint"
    file.write_text("weights")
    before = file.stat()
    code = WAYS_OUT[what].replace("<parent>", str(os.getpid())).replace("<file>", str(file))
    way = f"import os\ntry:\n    {code}\nexcept (OSError, ValueError) as e:\n    raise refused.Refused(6, type(e).__name__)\n"
    hostile(monkeypatch, way + "raise refused.Refused(6, 'it got out')")
    found = refused(png())
    assert found.outcome == Outcome.CORRUPT
    assert found.detail in ("PermissionError", "OSError", "BlockingIOError", "ValueError")
    assert file.stat() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.stack
def test_nothing_risky_is_decoded_where_the_filter_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    no_call = "sandbox._SEES = dict.fromkeys(sandbox._SEES, (0, 99999))"  # Linux has no such number
    before_main(monkeypatch, f"from swav_platform.images.decoding import sandbox\n{no_call}\n")
    monkeypatch.setattr(child_process, "START_PAUSES", ())
    with pytest.raises(NoDecoderError):
        decode(png(), POLICY)


@pytest.mark.stack
@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("ctypes.string_at(1)", Outcome.DECODE_CRASH),
        ("import os; os._exit(7)", Outcome.DECODE_CRASH),
        ("while True: pass", Outcome.DECODE_TIMEOUT),
        ("return [bytearray(2**24) for _ in range(100)]", Outcome.DECODE_MEMORY),
        ("import os; os.write(1, b'x' * 100)", Outcome.DECODE_CRASH),
        ("import os; os.write(1, b'\\x02' + bytes(15) + b'[]')", Outcome.DECODE_CRASH),
        ("import numpy as np; return np.zeros((9000, 9000, 3), np.uint8)", Outcome.DECODE_CRASH),
        ("import numpy as np; return np.zeros((3, 3, 2), np.uint8)", Outcome.DECODE_CRASH),
        ("raise KeyError('?')", Outcome.CORRUPT),
    ],
)
def test_an_image_that_it_does_not_survive_has_an_outcome(monkeypatch: pytest.MonkeyPatch, code: str, outcome: Outcome) -> None:
    with monkeypatch.context() as patch:
        hostile(patch, code)
        seconds = 0.15 if outcome == Outcome.DECODE_TIMEOUT else 15
        assert refused(png(), ImagePolicy(max_decode_seconds=seconds)).outcome == outcome
    confined._here.child = None
    assert decode(png(9), POLICY).max() == 9


@pytest.mark.stack
def test_a_child_that_stands_still_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "CLOCK_SECONDS", 0.3)
    policy = ImagePolicy(max_decode_seconds=0.02)
    hostile(monkeypatch, "time.sleep(100)")
    confined._here.child = child = confined.Child(confined.memory(POLICY))
    assert refused(png(), policy).outcome == Outcome.DECODE_TIMEOUT
    assert child._process.returncode is not None


def test_one_that_cannot_be_started_says_nothing_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(time, "sleep", paused.append)
    with pytest.raises(NoDecoderError, match="/nowhere/python"):
        decode(png(), POLICY)
    assert paused == list(child_process.START_PAUSES)
    with pytest.raises(NoDecoderError):
        thumbnail(png(), POLICY)
    assert paused == list(child_process.START_PAUSES), "who asks again soon is told at once"
    spec = RowSpec(0, np.arange(1), np.zeros(1, np.int64), np.zeros(1, bool))
    line = IndexLine(0, "grey", "/data/shard.tar", 512, len(png()), "png", None)
    with pytest.raises(NoDecoderError):
        make_row(spec, lambda numbers: {0: (line, png())}, lambda position, attempt: 0, load(None, ["data.row_size=1"]))


def test_one_that_cannot_be_started_at_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(time, "sleep", lambda seconds: monkeypatch.setattr(sys, "executable", real))
    assert decode(png(), POLICY).max() == 7


@pytest.mark.stack
def test_a_warm_one_serves_many_images_and_then_makes_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "IMAGES", 3)
    seen = []
    for value in range(5):
        assert decode(png(value), POLICY).max() == value
        seen.append(process())
    assert len(set(seen)) == 2
    assert seen[0] == seen[2]
    assert not Path(f"/proc/{seen[0]}").exists()


def test_each_thread_and_each_fork_has_its_own() -> None:
    decode(png(), POLICY)
    mine, theirs = process(), []
    thread = threading.Thread(target=lambda: (decode(png(), POLICY), theirs.append(process())))
    thread.start()
    thread.join()
    assert theirs[0] != mine
    assert not Path(f"/proc/{theirs[0]}").exists(), "it ends with its thread"
    forked = os.fork()
    if forked == 0:
        decode(png(), POLICY)
        os._exit(process() == mine)
    assert os.waitpid(forked, 0)[1] == 0
    assert decode(png(5), POLICY).max() == 5
    assert process() == mine


def test_a_jpeg_is_the_same_in_and_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rough = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(rough).resize((120, 90)), exif=exif)
    here = decode(data, POLICY)
    assert getattr(confined._here, "child", None) is None, "an ordinary JPEG needs no child"
    monkeypatch.setattr("swav_platform.images.decoding.decode.SUSPECT_SECONDS", 0)
    np.testing.assert_array_equal(decode(data, POLICY), here)
    assert confined._here.child.images == 1
