"""Appends "ran" to DIRECTORY/NAME.ran and waits for DIRECTORY/NAME.finish, {"code", "reason", "message"}."""

import json
import os
import sys
import time
from pathlib import Path

directory, name = Path(sys.argv[1]), sys.argv[2]
with (directory / f"{name}.ran").open("a") as stream:
    stream.write("ran\n")
(directory / f"{name}.environment").write_text(json.dumps(dict(os.environ)))
print("working", flush=True)
while not (finish := directory / f"{name}.finish").exists():
    time.sleep(0.01)
wish = json.loads(finish.read_text())
if wish["message"]:
    report = json.dumps({"reason": wish["reason"], "message": wish["message"]})
    Path(os.environ["RETRIEVAL_TERMINATION_LOG"]).write_text(report)
sys.exit(wish["code"])
