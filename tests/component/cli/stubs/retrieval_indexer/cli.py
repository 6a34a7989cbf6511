"""A generation whose id follows from bundle, kind and place. Several shards must have been encoded before."""

import sys
from pathlib import Path

from stub_work import finish, hex16, options, stop_if_told

chosen = options(sys.argv[1:])
stop_if_told(chosen["--dataset"])
bundle, kind = chosen["--expected-bundle-id"], chosen["--kind"]
shards = [Path(chosen["--out"], "shards", f"{number:05d}.json") for number in range(int(chosen["--shards"]))]
if sys.argv[1] == "encode":
    shards[0].parent.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        shard.touch()
    sys.exit()
if len(shards) > 1 and not all(shard.exists() for shard in shards):
    sys.exit("found no encoded shards")
checks = {"finite": True, "maxNormError": 0.0, "selfHit": 1.0, "recallAtServedK": 1.0, "coverage": 1.0}
document = {
    "id": f"g-{hex16(bundle, kind, chosen['--out'])}",
    "kind": kind,
    "bundleId": bundle,
    "asOf": 1,
    "count": 1000,
    "servedK": int(chosen["--served-k"]),
    "checks": checks,
}
finish(chosen["--out"], "MANIFEST.json", document)
