"""The ports of simulated_operator.py remember: the next process finds a promoted object as the former one left it."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract_objects import manifest

from retrieval_operator.adapters.memory import MemoryModelStore
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.controller import Controller
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import Action
from retrieval_operator.kubernetes_mode import now
from retrieval_operator.work_queue import WorkQueue

KEY = "default/feed"
LIMIT_S = 60


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where it is a program, not a package
    return importlib.import_module("simulated_operator")


@pytest.mark.parametrize("remembers", [True, False])
async def test_a_process_that_remembers_does_nothing_where_another_one_would_act(
    simulated: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remembers: bool
) -> None:
    if remembers:
        monkeypatch.setenv("SIMULATED_PORTS", str(tmp_path / "ports.json"))
    models = MemoryModelStore()
    for revision in ("1", "2", "3"):  # of the third on, files of the first are collected
        models.apply(manifest(data={"uri": "/data", "revision": revision}, rollback={"windowSeconds": 0}), now=now())
        assert await process(simulated, models)
    before = await status(models)
    assert before.champion is not None
    assert [entry.outcome for entry in before.history] == ["Promoted"] * 3
    writes = models.calls.count(("write_status", KEY))
    acted = bool(await process(simulated, models))
    assert acted is not remembers
    if remembers:
        assert models.calls.count(("write_status", KEY)) == writes


async def process(simulated: Any, models: MemoryModelStore) -> list[Action]:
    """What one operator process does until nothing is left to do."""
    performed: list[Action] = []
    mode = SimpleNamespace(models=models, queue=WorkQueue())
    async with asyncio.timeout(LIMIT_S), simulated.simulated_ports(mode) as ports:
        controller = Controller(ports, decide, now, on_action=lambda _moment, action: performed.append(action))
        while True:
            if (await controller.reconcile(KEY)).outcome != "settled":
                continue
            if not ports.workloads.running():
                return performed
            mode.queue.done(await mode.queue.get())  # until a program ends


async def status(models: MemoryModelStore) -> RetrievalModelStatus:
    found = await models.get(KEY)
    assert found is not None
    return found.status
