"""Index refreshes of one object, one after the other: each a rollout that trains nothing, of less than a minute."""

from __future__ import annotations

from dataclasses import dataclass

from lives.clients import KINDS, Told, pair
from lives.place import Object, Place, generate, names


@dataclass(frozen=True)
class Refreshes:
    """Of the object `feed` in a place."""

    place: Place

    def begin(self, days: int) -> Object:
        """Ask for an index of the world as it is after so many days; the champion that it is to follow.

        Newer items make another generation. No other stack is there when it begins.
        """
        champion: Object = self.place.model("feed")["status"]["champion"]
        self.until_alone(champion)
        uri = generate(self.place.path, f"day-{days}", f"--days={days}")
        self.place.patch("feed", {"data": {"uri": uri}, "index": {"refresh": {"revision": f"day-{days}"}}})
        return champion

    def until_alone(self, champion: Object) -> None:
        """No other stack is left, not even one that drains."""
        alone = [champion["stack"]]
        self.place.until("feed", lambda _: self.place.stacks("feed") == alone, "has no stack but its champion's")

    def until_indexing(self) -> Object:
        """The candidate, once its index is being built."""
        found = self.place.until("feed", _is_indexing, "builds its index")
        candidate: Object = found["status"]["candidate"]
        return candidate

    def finish(self, former: Object, *, attempts: int = 1) -> Object:
        """The champion that followed: a new generation of the same bundle, served by a new stack.

        It was made by so many jobs, each of which was an attempt.
        """
        champion: Object = self.place.until_promoted("feed")["status"]["champion"]
        assert champion["bundleId"] == former["bundleId"]
        assert champion["generationId"] != former["generationId"]
        assert champion["stack"] != former["stack"]
        jobs = names(self.place.list("jobs", name="feed", key=champion["generationKey"]))
        assert jobs == [f"feed-{champion['generationKey']}-index-{number}" for number in range(1, attempts + 1)], jobs
        return champion


def were_all_answered(told: dict[str, Told], *champions: Object) -> None:
    """By these champions and nobody else. `told` is what clients.stop() returns."""
    pairs = [pair(champion) for champion in champions]
    assert set(told) == set(KINDS)
    for kind, seen in told.items():
        print(f"{kind}: {seen.requests} requests, {dict(seen.counts)}", flush=True)
    unexpected = {kind: (found, seen.failures) for kind, seen in told.items() if (found := seen.unexpected(pairs))}
    assert not unexpected, unexpected
    assert all(pairs[-1] in seen.counts for seen in told.values()), "a kind of client never reached the new champion"


def _is_indexing(found: Object) -> bool:
    candidate = found["status"].get("candidate") or {}
    return candidate.get("step") == "IndexingForServing" and "is running" in candidate["message"]
