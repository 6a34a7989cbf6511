"""Clients that ask without pause: half on kept-alive connections, half on a new one each time.

Counts what a user would notice: failed requests, and answers that mix two stacks (the bundle and generation in body and
headers must be one pair, and a pair that some stack really has). Runs until SIGTERM, then prints one JSON line: by kind
of client how often which outcome was seen in which second.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx

CLIENTS_OF_EACH_KIND = 2
TIMEOUT_S = 10.0
BREATH_S = 0.1
# Outcomes besides "<bundle id> <generation id>", those of a good answer.
FAILED, MIXED = "failed", "mixed"

Pair = tuple[str, str]  # bundle id and generation id
# Asks once about a member (its id). Returns the ids in the answer and those beside it; raises Failed.
Ask = Callable[[str], Awaitable[tuple[Pair, Pair]]]


class Failed(Exception):
    """A request without the answer that was asked for."""


@dataclass
class Tally:
    """What all clients of one kind have seen so far. `outcomes` counts by second since 1970 and outcome."""

    outcomes: Counter[tuple[int, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # the first few, in words

    async def count(self, ask: Ask, member: str) -> None:
        try:
            inside, beside = await ask(member)
        except Failed as failure:
            self._note(FAILED)
            if len(self.failures) < 5:
                self.failures.append(str(failure))
        else:
            self._note(" ".join(inside) if inside == beside else MIXED)

    def _note(self, outcome: str) -> None:
        self.outcomes[int(time.time()), outcome] += 1

    def document(self) -> dict[str, Any]:
        seen = [(second, outcome, count) for (second, outcome), count in self.outcomes.items()]
        return {"outcomes": seen, "failures": self.failures}


def over_http(client: httpx.AsyncClient, address: str) -> Ask:
    """Asks /v1/retrieve for the best items of a member."""

    async def ask(member: str) -> tuple[Pair, Pair]:
        try:
            response = await client.post(f"{address}/v1/retrieve", json={"member_id": member, "k": 20})
        except httpx.HTTPError as error:
            raise Failed(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise Failed(f"{response.status_code}: {response.text[:200]}")
        body, headers = response.json(), response.headers
        if not body["ids"]:
            raise Failed(f"no items for {member}")
        in_headers = (headers["X-Bundle-Id"], headers["X-Generation-Id"])
        return (body["bundle_id"], body["generation_id"]), in_headers

    return ask


async def keep_asking(ask: Ask, members: list[str], tally: Tally, done: asyncio.Event) -> None:
    """One client, one request after the other, a short breath between them (its machine has other work too)."""
    turn = 0
    while not done.is_set():
        await tally.count(ask, members[turn % len(members)])
        turn += 1
        await asyncio.sleep(BREATH_S)


async def run(clients: Mapping[str, list[Ask]], members: list[str]) -> None:
    """Let clients, by their kind, ask until SIGTERM."""
    done, tallies = asyncio.Event(), {kind: Tally() for kind in clients}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    asking = [keep_asking(ask, members, tallies[kind], done) for kind, asks in clients.items() for ask in asks]
    await asyncio.gather(*asking)
    print(json.dumps({kind: tally.document() for kind, tally in tallies.items()}), flush=True)


async def http_clients(address: str, stack: AsyncExitStack) -> dict[str, list[Ask]]:
    """Both kinds; they are closed with `stack`."""
    kept_alive = {"keep-alive": None, "new connections": 0}
    clients: dict[str, list[Ask]] = {}
    for kind, most in kept_alive.items():
        for _ in range(CLIENTS_OF_EACH_KIND):
            limits = httpx.Limits(max_keepalive_connections=most)
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits))
            clients.setdefault(kind, []).append(over_http(client, address))
    return clients


async def main(address: str, members: list[str]) -> None:
    async with AsyncExitStack() as stack:
        await run(await http_clients(address, stack), members)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2].split(",")))
