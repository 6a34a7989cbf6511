"""`retrieval-encoder-server`: settings in, a server until TERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
import warnings
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from retrieval_core.errors import BadArguments, describe_invalid_fields
from retrieval_core.exits import exit_with_reason
from retrieval_core.log import configure_logging, get_logger
from retrieval_encoder_server import listening
from retrieval_encoder_server.settings import Settings

EXAMPLES = """
Serves one bundle and, with a generation, retrieval over its index.

Every flag can be given as an environment variable instead (BUNDLE_URI, PORT, ...). Health: /v2/health/ready.

Examples:

  retrieval-encoder-server --bundle-uri runs/bundle --port 8080

  retrieval-encoder-server --bundle-uri runs/bundle --generation-uri runs/index --expected-bundle-id b-0123456789abcdef

Exit codes: 0 stopped by TERM; 2 bad arguments; 65 the bundle or generation is damaged, or not the expected one;
75 a port is in use.
"""

log = get_logger(__name__)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _flag(name: str) -> Any:
    """The flag and the environment variable of one setting, described by the setting itself."""
    field = Settings.model_fields[name]
    default = "" if field.is_required() or field.default is None else f" [default: {field.default}]"
    return typer.Option(help=f"{field.description}{default}", envvar=name.upper())


@app.command(help=EXAMPLES)
def serve(
    *,
    bundle_uri: Annotated[str | None, _flag("bundle_uri")] = None,
    generation_uri: Annotated[str | None, _flag("generation_uri")] = None,
    expected_bundle_id: Annotated[str | None, _flag("expected_bundle_id")] = None,
    expected_generation_id: Annotated[str | None, _flag("expected_generation_id")] = None,
    model_name: Annotated[str | None, _flag("model_name")] = None,
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    grpc_port: Annotated[int | None, _flag("grpc_port")] = None,
    connection_age_seconds: Annotated[float | None, _flag("connection_age_seconds")] = None,
    drain_seconds: Annotated[float | None, _flag("drain_seconds")] = None,
    served_dimension: Annotated[int | None, _flag("served_dimension")] = None,
    device: Annotated[str | None, _flag("device")] = None,
    max_body_bytes: Annotated[int | None, _flag("max_body_bytes")] = None,
    max_bodies_bytes: Annotated[int | None, _flag("max_bodies_bytes")] = None,
    max_batch_tokens: Annotated[int | None, _flag("max_batch_tokens")] = None,
    max_queue_tokens: Annotated[int | None, _flag("max_queue_tokens")] = None,
    max_queue_searches: Annotated[int | None, _flag("max_queue_searches")] = None,
    max_inputs: Annotated[int | None, _flag("max_inputs")] = None,
    tokenizer_threads: Annotated[int | None, _flag("tokenizer_threads")] = None,
    request_timeout_seconds: Annotated[float | None, _flag("request_timeout_seconds")] = None,
    stuck_after_seconds: Annotated[float | None, _flag("stuck_after_seconds")] = None,
) -> None:
    given = {name: value for name, value in locals().items() if value is not None}
    with exit_with_reason():
        configure_logging()
        run(read_settings(given))


def read_settings(given: dict[str, Any]) -> Settings:
    """Settings from flags, then the environment, then defaults. BadArguments with one sentence per wrong setting."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise BadArguments("; ".join(map(_as_flag, describe_invalid_fields(error)))) from None


def run(settings: Settings) -> None:
    """Serve until told to stop. Raises BadInput and others of `retrieval_core.errors` when it cannot."""
    started_at = time.monotonic()
    # KServe 0.21 answers V1 with a response class that FastAPI has since deprecated.
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    # As process 1 of a container there is no default action for TERM; while loading, nothing is in flight.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as claims:
        listener = claims.enter_context(listening.bind(settings.host, settings.port))
        grpc_claim = None
        if settings.grpc_port is not None:
            grpc_claim = claims.enter_context(listening.bind(settings.host, settings.grpc_port, "GRPC_PORT"))
        asyncio.run(_serve(settings, listener, grpc_claim, started_at))


async def _serve(
    settings: Settings, listener: socket.socket, grpc_claim: socket.socket | None, started_at: float
) -> None:
    from retrieval_encoder_server import server, start_up  # noqa: PLC0415 - heavy: after the ports are claimed

    ready = start_up.prepare(settings, grpc_claim)

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        took_s = time.monotonic() - started_at
        ready.metrics.start_up_seconds.set(took_s)
        log.info("ready", url=f"http://{host}:{port}", start_up_s=round(took_s, 2), **ready.describe())

    ready.service.start()
    try:
        listening.listen(listener)
        http = server.DrainingServer(ready.app, settings, ready.lifecycle, announce, beside=ready.grpc)
        await http.serve(sockets=[listener])
    finally:
        ready.service.stop()


def _as_flag(sentence: str) -> str:
    """`port: found ...` as the person wrote it: `--port (PORT): found ...`."""
    name, _, rest = sentence.partition(":")
    return f"--{name.replace('_', '-')} ({name.upper()}):{rest}"


if __name__ == "__main__":
    app()
