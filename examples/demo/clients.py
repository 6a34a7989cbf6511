"""Clients that ask without pause: half on kept-alive connections, half on a new one each time.

Counts what a user would notice: failed requests, and answers that mix two stacks (the bundle and generation in body and
headers must be one pair, and a pair that some stack really has). Runs until SIGTERM, then prints one JSON line.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field

import httpx

CLIENTS_OF_EACH_KIND = 2
TIMEOUT_S = 10.0
BREATH_S = 0.1


@dataclass
class Tally:
    """What all clients have seen so far."""

    requests: int = 0
    failed: int = 0
    mixed: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, response: httpx.Response) -> None:
        self.requests += 1
        if response.status_code != 200:
            self.fail(f"{response.status_code}: {response.text[:200]}")
            return
        body = response.json()
        in_body = (body["bundle_id"], body["generation_id"])
        in_headers = (response.headers["X-Bundle-Id"], response.headers["X-Generation-Id"])
        if in_body != in_headers or not body["ids"]:
            self.mixed += 1
        self.answers[" ".join(in_body)] += 1

    def fail(self, why: str) -> None:
        self.failed += 1
        if len(self.failures) < 5:
            self.failures.append(why)


async def ask(client: httpx.AsyncClient, address: str, member: str, tally: Tally) -> None:
    try:
        response = await client.post(f"{address}/v1/retrieve", json={"member_id": member, "k": 20})
    except httpx.HTTPError as error:
        tally.requests += 1
        tally.fail(f"{type(error).__name__}: {error}")
    else:
        tally.note(response)


async def keep_asking(address: str, members: list[str], tally: Tally, done: asyncio.Event, *, keep_alive: bool) -> None:
    """One client, one request after the other, a short breath between them (the demo's cores have other work too)."""
    limits = httpx.Limits(max_keepalive_connections=None if keep_alive else 0)
    turn = 0
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client:
        while not done.is_set():
            await ask(client, address, members[turn % len(members)], tally)
            turn += 1
            await asyncio.sleep(BREATH_S)


async def main(address: str, members: list[str]) -> None:
    tally, done = Tally(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await asyncio.gather(
        *(
            keep_asking(address, members, tally, done, keep_alive=keep_alive)
            for keep_alive in (True, False)
            for _ in range(CLIENTS_OF_EACH_KIND)
        )
    )
    print(
        json.dumps(
            {
                "requests": tally.requests,
                "failed": tally.failed,
                "mixed": tally.mixed,
                "answers": tally.answers,
                "failures": tally.failures,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2].split(",")))
