"""Serves one bundle, and optionally one index generation, over HTTP and gRPC: a KServe predictor.

The path of a request: schemas (shape) -> features (meaning) -> service (render, count tokens, admit) -> batcher
(one compute thread) -> engine (bundle + generation) -> routes (bytes); over gRPC, `grpc_server` stands at both ends.
`lifecycle` and `connections` decide when a response ends its connection and when the process ends.
"""
