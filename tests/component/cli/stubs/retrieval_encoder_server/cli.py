"""A server that says which bundle and generation it has, after comparing them with what is expected."""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUNDLE = json.loads(Path(os.environ["BUNDLE_URI"], "bundle.json").read_text())["id"]
GENERATION = json.loads(Path(os.environ["GENERATION_URI"], "MANIFEST.json").read_text())["id"]
if (os.environ["EXPECTED_BUNDLE_ID"], os.environ["EXPECTED_GENERATION_ID"]) != (BUNDLE, GENERATION):
    sys.exit(65)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"bundle_id": BUNDLE, "generation_id": GENERATION, "dimension": 8, "count": 1000}).encode()
        self.send_response(200 if self.path in ("/v1/ids", "/v2/health/ready") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Bundle-Id", BUNDLE)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
