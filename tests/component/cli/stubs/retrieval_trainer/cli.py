"""A bundle whose id follows from the configuration; its quality is the dataset's."""

import json
import sys
from pathlib import Path

from stub_work import finish, hex16, options, stop_if_told

chosen = options(sys.argv[1:])
config = json.loads(chosen["--config"])
stop_if_told(config["dataset"])
quality = Path(config["dataset"], "quality").read_text().strip()
finish(chosen["--out"], "bundle.json", {"id": f"b-{hex16(chosen['--config'])}", "quality": float(quality)})
