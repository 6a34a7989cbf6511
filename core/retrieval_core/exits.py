"""Exit codes of every program (docs/contracts.md section 2) and the one place that maps failures to them."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_core.errors import BadArguments, BadInput, Diverged, StorageFailed, TemporarilyUnavailable

OK = 0
BAD_ARGUMENTS = 2
BAD_INPUT = 65
DIVERGED = 69
STORAGE_FAILED = 74
TEMPORARILY_UNAVAILABLE = 75

TERMINATION_LOG_VARIABLE = "RETRIEVAL_TERMINATION_LOG"
KUBERNETES_TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_LOG_LIMIT_BYTES = 4096  # what the kubelet keeps

_EXPECTED: dict[type[Exception], int] = {
    BadArguments: BAD_ARGUMENTS,
    BadInput: BAD_INPUT,
    Diverged: DIVERGED,
    StorageFailed: STORAGE_FAILED,
    TemporarilyUnavailable: TEMPORARILY_UNAVAILABLE,
}
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
# Libraries in C++ and Rust (safetensors, faiss, torch) turn an errno into text and raise their own exception.
_STORAGE_TEXTS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO))


@contextmanager
def exit_with_reason() -> Iterator[None]:
    """Turn an expected failure into its exit code, as a context manager or a decorator of a command.

    An expected failure (`errors.py`, and an OSError that means a full or failing disk) prints its sentence to stderr
    without a traceback and exits with its code. Anything else is a crash: it is recorded and raised again. Both write
    `{"reason", "message"}` to the file named by RETRIEVAL_TERMINATION_LOG.
    """
    try:
        yield
    except Exception as error:
        verdict = classify(error)
        if verdict is None:
            write_termination_log("Crashed", f"{type(error).__name__}: {error}")
            raise
        code, reason = verdict
        write_termination_log(reason, str(error))
        print(f"{reason}: {error}", file=sys.stderr)  # noqa: T201 - this is the program's last word to its user
        raise SystemExit(code) from None


def classify(error: Exception) -> tuple[int, str] | None:
    """Exit code and reason of an expected failure; None when the error is a defect."""
    for kind, code in _EXPECTED.items():
        if isinstance(error, kind):
            return code, kind.__name__
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return STORAGE_FAILED, StorageFailed.__name__
    if any(text in str(error) for text in _STORAGE_TEXTS):
        return STORAGE_FAILED, StorageFailed.__name__
    return None


def write_termination_log(reason: str, message: str) -> None:
    """Leave the reason where a supervisor finds it. Never fails: the exit code still tells the kind of failure."""
    path = _termination_log()
    if path is None:
        return
    try:
        path.write_text(_termination_document(reason, message), encoding="utf-8", errors="replace")
    except OSError as error:
        print(f"cannot write {TERMINATION_LOG_VARIABLE} {path}: {error}", file=sys.stderr)  # noqa: T201 - as above


def _termination_document(reason: str, message: str) -> str:
    """JSON within the limit: the end of a long message is left out, so that what remains is still JSON."""
    while True:
        document = json.dumps({"reason": reason, "message": message}, ensure_ascii=False)
        if len(document.encode("utf-8", "replace")) <= TERMINATION_LOG_LIMIT_BYTES:
            return document
        message = message[: len(message) * 3 // 4]


def _termination_log() -> Path | None:
    named = os.environ.get(TERMINATION_LOG_VARIABLE)
    if named:
        return Path(named)
    writable = KUBERNETES_TERMINATION_LOG.is_file() and os.access(KUBERNETES_TERMINATION_LOG, os.W_OK)
    return KUBERNETES_TERMINATION_LOG if writable else None
