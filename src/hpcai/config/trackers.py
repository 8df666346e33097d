"""What a tracker needs, and the address of an MLflow store as a user writes it: checked, the same wherever the run goes on."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

MODULES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}  # extra -> what shows it is installed


def mlflow_store(text: str) -> str:
    """A folder's absolute path, `sqlite:////absolute/file`, or the http(s) address as it is.

    Raises: ValueError, never with the text: it may hold a password.
    """
    scheme, _, rest = text.partition(":")
    if text and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        return _absolute(text)
    if scheme in ("http", "https"):
        return _server(text)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc in ("", "localhost") and parts.path and not parts.query and not parts.fragment:
            return _absolute(unquote(parts.path))
        raise ValueError("a file: address names a folder of this machine. Write the folder's path.")
    if scheme == "sqlite":
        path = rest.removeprefix("///")
        if path == rest or not path or path == ":memory:" or set(path) & set("?#%"):
            raise ValueError("an SQLite store is a file whose path holds none of ? # %. Write sqlite:///FILE.")
        return f"sqlite:///{_absolute(path)}"
    raise ValueError("no store of a kind that is known. Write a folder (./NAME), sqlite:///FILE, or http(s)://HOST.")


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111  (as inputs.expanded: pathlib's raises for ~nobody)


def _server(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no address. Write http(s)://HOST:PORT.") from None
    if "@" in text:
        raise ValueError(
            "holds a user or a password, and a config is no place for one. "
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if not host or " " in text or parts.query or parts.fragment:
        raise ValueError("an address is http(s)://HOST:PORT/PATH, no more. Correct it.")
    return text
