"""A server as in docs/contracts.md section 9, without a model: health, ids, and `/v1/slow` that takes 0.3 s to answer.

A bundle URI that ends in "broken" ends it at once with exit code 65; TERM lets requests in flight finish.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

IDS = {"bundle_id": os.environ["EXPECTED_BUNDLE_ID"], "generation_id": os.environ["EXPECTED_GENERATION_ID"]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: else 40 ms per answer

    def do_GET(self):
        with self.server.answering:
            self.server.answers_in_flight += 1
        self.answer()
        with self.server.answering:
            self.server.answers_in_flight -= 1
            self.server.answering.notify_all()

    def answer(self):
        if self.path == "/v1/slow":
            time.sleep(0.3)
        known = self.path in {"/v2/health/ready", "/v1/ids", "/v1/slow"}
        body = (
            json.dumps({**IDS, "port": self.server.server_port, "in_flight": self.server.answers_in_flight}).encode()
            if known
            else b"{}"
        )
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    allow_reuse_address = True
    answering = threading.Condition()
    answers_in_flight = 0


if os.environ["BUNDLE_URI"].endswith("broken"):
    print("this bundle is refused", flush=True)
    sys.exit(65)
server = Server((os.environ["HOST"], int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.02)
with server.answering:
    server.answering.wait_for(lambda: server.answers_in_flight == 0)
