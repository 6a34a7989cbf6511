"""A generation whose id follows from bundle, kind and place."""

import sys

from stub_work import finish, hex16, options, stop_if_told

chosen = options(sys.argv[1:])
stop_if_told(chosen["--dataset"])
bundle, kind = chosen["--expected-bundle-id"], chosen["--kind"]
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
