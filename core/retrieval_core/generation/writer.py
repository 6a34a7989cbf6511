"""Write the files of a generation: each appears whole or not at all, and its hash is that of the bytes handed in."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval_core.errors import StorageFailed
from retrieval_core.generation.manifest import FileEntry

_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


def write_bytes(path: Path, content: bytes | memoryview) -> FileEntry:
    """Write to a temporary name, flush to disk, rename; StorageFailed when the disk is full or fails."""
    # Not the process id alone: pods that share a volume all call themselves process 1.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _STORAGE_ERRNOS:
            size = memoryview(content).nbytes
            raise StorageFailed(f"{path}: {os.strerror(error.errno or 0)} while writing {size} bytes") from error
        raise
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=memoryview(content).nbytes)


def write_vectors(path: Path, vectors: npt.NDArray[np.float32]) -> FileEntry:
    """Write float32 [n, d] as little-endian rows."""
    return write_bytes(path, np.ascontiguousarray(vectors, dtype="<f4").tobytes())


def write_table(path: Path, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> FileEntry:
    """Write columns as one parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    return write_bytes(path, memoryview(sink.getvalue()))
