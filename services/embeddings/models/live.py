"""The models that answer now. A new version is loaded and checked beside the old one, replaces it at once, and the old one is drained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from services.embeddings.body import Bodies
from services.embeddings.errors import ServiceError
from services.embeddings.metrics import Metrics, forget
from services.embeddings.models.sources import Loaded, load, version
from services.embeddings.settings import ServiceSettings, Source
from services.embeddings.state import State
from swav_platform.errors import UserError
from swav_platform.malloc import give_back_freed

log = logging.getLogger(__name__)

CANARY = 3.0  # seconds for a test image
RECHECK = 1.0  # seconds between two test images
RETRY = 60.0  # seconds after which a refused version is tried again: its files may have been incomplete


@dataclass
class Slot:
    """One source and the version of it that answers."""

    source: Source
    state: State
    version: str
    refused: dict[str, Any] | None = None  # the latest refused version: version, because, at
    tried: tuple[str, float] = ("", 0.0)  # version that was refused, and when
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Models:
    """All models of a process, by name. Belongs to one event loop, from `start` to `stop`."""

    def __init__(self, settings: ServiceSettings, build: Callable[[Loaded], State]) -> None:
        """Loads every source. build: makes the state of a loaded model, with an engine of its own. Raises UserError."""
        self._settings = settings
        self._build = build
        self._slots: dict[str, Slot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: tuple[float, str] = (0.0, "")  # when the engines were checked last, and what was wrong
        for source in settings.sources:
            seen = _seen(source)
            state = build(load(source, settings))
            name = source.name or state.model.name
            if name in self._slots:
                raise UserError(
                    f"Two models are named {name}. Give one of them another name, as in --model other={source.place}."
                )
            self._slots[name] = Slot(source, state, seen)

    @property
    def first(self) -> State:
        return next(iter(self._slots.values())).state

    @property
    def states(self) -> dict[str, State]:
        return {name: slot.state for name, slot in self._slots.items()}

    @property
    def metrics(self) -> Metrics:
        """Those of all models, as `bodies`."""
        return self.first.metrics

    @property
    def bodies(self) -> Bodies:
        return self.first.bodies

    async def broken(self) -> str:
        """What keeps a model from encoding a test image, empty if nothing does. Looks again after RECHECK seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._broken[0] > RECHECK:
            self._broken = (now, "; ".join(filter(None, [await _fault(*each) for each in self.states.items()])))
        return self._broken[1]

    @property
    def refused(self) -> dict[str, dict[str, Any]]:
        return {name: slot.refused for name, slot in self._slots.items() if slot.refused}

    def pick(self, name: str | None, draw: float = 1.0) -> State:
        """The model with this name or digest. Without a name: the first, or another one with its weight as probability.

        draw: a number from 0 to 1; 1 chooses the first. A single model has any name, because clients of other services name
        theirs. Raises ServiceError 404 for a name that none of several models has.
        """
        if name is None or len(self._slots) == 1:
            for slot in self._slots.values():
                draw -= slot.source.weight
                if draw < 0:
                    return slot.state
            return self.first
        if name in self._slots:
            return self._slots[name].state
        for state in self.states.values():
            if name in (state.model.digest, state.model.name):
                return state
        known = ", ".join(self._slots)
        raise ServiceError(
            404, "no_such_model", f"There is no model {name[:80]!r} here. The models are {known}.", {"models": list(self._slots)}
        )

    async def start(self) -> None:
        for name, slot in self._slots.items():
            await slot.state.engine.start()
            self._show(name, slot.state, 1)
        if self._settings.poll > 0:
            self._spawn(self._poll())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for state in self.states.values():
            await state.engine.stop()

    async def reload(self, name: str | None = None) -> list[dict[str, Any]]:
        """Looks for new versions of one model or of all. Returns for each its name, digest, result and, if refused, the reason.

        result: `unchanged`, `swapped`, or `refused`; the version before a refused one goes on answering.
        """
        if name is not None and name not in self._slots:
            self.pick(name)  # raises for an unknown name
        told = []
        for each, slot in self._slots.items():
            if name in (None, each, slot.state.model.digest, slot.state.model.name):
                result = await self._renew(each, slot, again=True)
                because = {"because": slot.refused["because"]} if result == "refused" and slot.refused else {}
                told.append({"name": each, "digest": slot.state.model.digest, "result": result, **because})
        return told

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll)
            for name, slot in self._slots.items():
                try:
                    await self._renew(name, slot)
                except Exception:
                    log.exception("looking for a new version of %s failed", name)

    async def _renew(self, name: str, slot: Slot, again: bool = False) -> str:
        async with slot.lock:
            try:
                seen = await asyncio.to_thread(version, slot.source)
            except UserError as error:  # the version is unknown, so no version is marked as refused
                log.warning("can't look for a new version of %s: %s", name, error)
                slot.refused = slot.refused or _refusal("unknown", f"The source can't be reached: {error}")
                return "refused"
            now = asyncio.get_running_loop().time()
            if seen == slot.version:
                slot.refused, slot.tried = None, ("", 0.0)
                return "unchanged"
            if not again and slot.tried[0] == seen and now - slot.tried[1] < RETRY:
                return "refused"
            result = await self._swap(name, slot, seen)
            if result == "refused":
                slot.tried = (seen, now)
            return result

    async def _swap(self, name: str, slot: Slot, seen: str) -> str:
        metrics = slot.state.metrics
        fresh: State | None = None
        try:
            loaded = await asyncio.to_thread(load, slot.source, self._settings)
            _check_fits(loaded, slot.state)
            fresh = await asyncio.to_thread(self._build, loaded)
            await fresh.engine.start()
        except Exception as error:  # whatever it is, the model that answers is not the one that failed
            because = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            slot.refused = _refusal(seen, because)
            metrics.swaps.labels(name, "refused").inc()
            log.error("a new version of %s is refused, %s goes on answering: %s", name, slot.state.model.digest, because)
            if fresh is not None:
                await fresh.engine.stop()
            return "refused"
        old, slot.state, slot.version, slot.refused = slot.state, fresh, seen, None
        metrics.swaps.labels(name, "swapped").inc()
        self._show(name, old, 0)
        self._show(name, fresh, 1)
        log.warning("%s answers with %s instead of %s", name, fresh.model.digest, old.model.digest)
        self._spawn(_drain(old, self._settings.drain))
        return "swapped"

    def _show(self, name: str, state: State, value: int) -> None:
        labels = (name, state.model.digest, state.model.runtime.name)
        if value:
            state.metrics.models.labels(*labels).set(value)
        elif any(each.model.digest == labels[1] for each in self.states.values()):
            return
        else:
            forget(state.metrics.models, labels)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _fault(name: str, state: State) -> str:
    try:
        async with asyncio.timeout(CANARY):
            await state.engine.check()
    except TimeoutError:
        return f"{name} does not encode a test image within {CANARY:.0f} s"
    except Exception as error:
        return f"{name} does not encode a test image: {error}"
    return ""


async def _drain(state: State, seconds: float) -> None:
    """Stops an engine once its requests are answered. `seconds`: time for requests that chose it but have not started."""
    await asyncio.sleep(seconds)
    while state.engine.busy:
        await asyncio.sleep(0.05)
    await state.engine.stop()
    del state
    await asyncio.to_thread(give_back_freed)


def _check_fits(loaded: Loaded, state: State) -> None:
    """Raises UserError for a version whose answers clients of the old one could not use."""
    old, new = state.model, loaded.model
    if (old.feature_dim, old.projection_dim) != (new.feature_dim, new.projection_dim):
        raise UserError(
            f"Its vectors have {new.feature_dim} and {new.projection_dim} numbers, those of the served model {old.feature_dim} and "
            f"{old.projection_dim}. Serve it under another name, or start the service again."
        )
    if state.store is not None and loaded.store is None:
        raise UserError("It has no embeddings, and the served model has. Run `swav embed` with the new model first.")


def _seen(source: Source) -> str:
    """The version before loading: what changes while a model loads is found by the next look."""
    try:
        return version(source)
    except UserError:
        return ""  # loading tells what is wrong


def _refusal(seen: str, because: str) -> dict[str, Any]:
    return {"version": seen, "because": because, "at": datetime.now(UTC).isoformat(timespec="seconds")}
