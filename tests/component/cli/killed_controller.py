"""`python killed_controller.py HOME NAME`: a control plane that kills itself right after its first action.

Telling people (EmitEvent) is no action here: it may be repeated, and the passes that begin with it would never get on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from retrieval_operator.domain.plan import Action, EmitEvent
from retrieval_operator.instance import sole_controller
from retrieval_operator.local_mode import LocalMode
from retrieval_operator.settings import load_settings


def kill_after(moment: Literal["before", "after"], action: Action) -> None:
    if moment == "after" and not isinstance(action, EmitEvent):
        print(type(action).__name__, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


async def until_settled(mode: LocalMode, name: str) -> None:
    """Runs until the object is live and a look later nothing has killed the process."""
    stop = asyncio.Event()
    work = asyncio.create_task(mode.run(stop))
    settled = 0
    while settled < 4:
        model = await mode.models.get(f"default/{name}")
        settled = settled + 1 if model and model.status.phase == "Live" else 0
        await asyncio.sleep(0.5)
    stop.set()
    await work


if __name__ == "__main__":
    home = LocalMode(load_settings().model_copy(update={"home": Path(sys.argv[1])}), on_action=kill_after)
    with sole_controller(home.home, "killed_controller.py"):
        asyncio.run(until_settled(home, sys.argv[2]))
