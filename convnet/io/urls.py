"""URLs where paths may stand: what is asked of a server, and what of it may be shown and kept."""

import base64
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from convnet.io import atomic

SCHEMES = ("http", "https", "s3", "gs", "az")
URL = re.compile(rf"({'|'.join(SCHEMES)}):/{{1,2}}(?=[^/])")  # a Path of one has lost a slash
SECRET = re.compile(rf"((?:{'|'.join(SCHEMES)}):/{{1,2}})(?:[^\s/'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


@dataclass(frozen=True)
class Url:
    """A place below which files are. Its text is without user, password and query, which may be secret."""

    address: str = field(repr=False)  # as it was given

    def __str__(self) -> str:
        return without_secrets(self.address)

    def __truediv__(self, name: str) -> "Url":
        """The file of this name, for messages."""
        return Url(f"{self}/{name}")

    @property
    def name(self) -> str:
        return str(self).rsplit("/", 1)[-1]

    def resolve(self) -> "Url":
        """Itself, as it depends on no folder."""
        return self

    def headers(self) -> dict[str, str]:
        """What says who asks, from the URL's user and password."""
        parts = urlsplit(self.address)
        if parts.username is None:
            return {}
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}


Place = Path | Url


def place(value: atomic.PathLike | Url, what: str) -> Place:
    """A path, or the URL that a text or path is. Raises: UsageError; `what` says what it is of."""
    if isinstance(value, Url):
        return value
    path = atomic.as_path(value, what)
    text = os.fspath(value)
    return Url(URL.sub(r"\1://", text, count=1).rstrip("/")) if URL.match(text) else path


def is_url(value: atomic.PathLike | Url) -> bool:
    return isinstance(value, Url) or URL.match(os.fspath(value)) is not None


def without_secrets(text: str) -> str:
    """A text whose URLs have neither user and password nor a query.

    >>> without_secrets("convnet train 'https://me:secret@host/photos?token=1' --epochs 3")
    "convnet train 'https://host/photos' --epochs 3"
    """
    return SECRET.sub(r"\1\2", text)
