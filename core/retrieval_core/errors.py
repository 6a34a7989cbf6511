"""The failures a program can explain to a person; each has an exit code in `exits.py`.

A message says what was found, what was expected and what to do, and names fields as they are spelled in the file the
person wrote. Everything else that is raised is a defect and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class BadArguments(ValueError):
    """The command line or the environment contradicts itself. A retry cannot help."""


class BadInput(ValueError):
    """A dataset, bundle, generation or base model is refused. A retry cannot help."""


class Diverged(RuntimeError):
    """Training produced a non-finite loss or a collapsed encoder. A retry with the same inputs cannot help."""


class StorageFailed(OSError):
    """A disk is full or an I/O operation failed. A retry may help."""


class TemporarilyUnavailable(RuntimeError):
    """MLflow or a storage service cannot be reached now. A retry may help."""


def validate_document(model: type[Model], document: Any, source: str) -> Model:
    """Validate a parsed YAML or JSON document; `source` names it in errors.

    Raises BadInput with one line per wrong field, each with its path as spelled in the document.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise BadInput("\n".join([f"{source} is not valid:", *describe_invalid_fields(error)])) from None


def describe_invalid_fields(error: ValidationError) -> list[str]:
    """One sentence per wrong field: `items.count[0]: found 3, expected a valid string`."""
    return [_describe_field(details) for details in error.errors(include_url=False)]


def _describe_field(details: Mapping[str, Any]) -> str:
    path = field_path(details["loc"])
    match details["type"]:
        case "missing":
            return f"{path}: missing, it is required"
        case "extra_forbidden":
            return f"{path}: unknown field"
        case "value_error":  # raised by our own validators, whose sentences are complete
            return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
    expected = details["msg"].removeprefix("Input should be ").removeprefix("Value should ")
    return f"{path}: found {details['input']!r:.80}, expected {expected}"


def field_path(location: Sequence[str | int]) -> str:
    """`("items", "count", 0)` as a person would write it: `items.count[0]`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")
