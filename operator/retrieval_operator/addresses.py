"""Addresses that people write into settings and connections."""

from __future__ import annotations

from urllib.parse import urlsplit


def plain_address(value: str) -> str:
    """The address of an MLflow without a slash at its end. Raises ValueError, never repeating the value."""
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message may hold the password
        sound = False
    if not sound:
        raise ValueError('expected an address such as "https://mlflow.example.com"')
    if "@" in parts.netloc:
        raise ValueError("holds a user or password; put them into the files of the credentials directory")
    return value.rstrip("/")
