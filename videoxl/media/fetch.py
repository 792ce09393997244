"""Videos by URL: fetched once into the user's cache, named by their content, with limits; a broken-off one goes on."""

from __future__ import annotations

import fcntl
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from videoxl.errors import VideoError
from videoxl.media.public_network import opener
from videoxl.utils.digest import digest, digest_file
from videoxl.utils.files import write_json
from videoxl.utils.user_cache import cache_folder, keep_newest, mark_used
from videoxl.version import __version__

MOST_KEPT = 32
"""Videos that are kept in the cache; those used longest ago go."""

_BLOCK = 1 << 20
_GIB = 1 << 30

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes of all, if known."""


@dataclass(frozen=True)
class FetchLimits:
    """What a URL may cost.

    Attributes:
        most_bytes: of the file. seconds: for all of it. silence: seconds without a byte.
        allow_private: whether an address of a private network (or of this machine) may be read.
    """

    most_bytes: int = 8 * _GIB
    seconds: float = 3600.0
    silence: float = 30.0
    allow_private: bool = False


def is_url(source: object) -> bool:
    """Whether a source is fetched: `http://` or `https://`."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch_video(url: str, progress: Progress | None = None, limits: FetchLimits | None = None) -> Path:
    """The local file of a URL. A file that has not changed since is not fetched again.

    Raises:
        VideoError: an address that is refused, a web page, a limit, or whatever the server or the network says.
    """
    limits = limits or FetchLimits()
    folder = cache_folder("videos")
    if folder is None:
        raise VideoError("the cache folder cannot be written; set VIDEOXL_CACHE to a folder for fetched videos")
    address = urlsplit(url)
    if not address.hostname or address.username or address.password:
        raise VideoError(f"{shown(url)} is not a URL of a video: it needs a host, and no name or password in it")
    key = digest(url, digits=32)
    note, part = folder / f"{key}.json", folder / f"{key}.part"
    known: dict = {}
    try:
        with _alone(folder / f"{key}.lock", limits, url):
            known = _read_note(note)
            name = _fetch(url, folder, part, known, progress, limits)
    except HTTPError as error:
        if error.code == 304:
            name = known["file"]
        else:
            raise VideoError(f"{shown(url)}: the server says {error.code} {error.reason}") from error
    except VideoError:
        raise
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, VideoError):
            raise reason from error
        raise VideoError(
            f"{shown(url)} cannot be fetched: {reason}. What is here is kept; ask again to go on"
        ) from error
    path = folder / name
    mark_used(path)
    keep_newest(folder, "*.video.*", MOST_KEPT)
    return path


@contextmanager
def _alone(lock: Path, limits: FetchLimits, url: str) -> Iterator[None]:
    """One process at a time: two that write one file would mix it up."""
    deadline = time.monotonic() + limits.seconds
    with open(lock, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VideoError(f"{shown(url)} is being fetched by another process; ask again later") from None
                time.sleep(0.2)
        yield


def _fetch(url: str, folder: Path, part: Path, known: dict, progress: Progress | None, limits: FetchLimits) -> str:
    begun = part.stat().st_size if part.exists() and known.get("part") else 0
    headers = {"User-Agent": f"videoxl/{__version__}", "Accept-Encoding": "identity"}
    if known.get("file") and (folder / known["file"]).is_file():
        headers |= {"If-None-Match": known["etag"]} if known.get("etag") else {}
        headers |= {"If-Modified-Since": known["modified"]} if known.get("modified") and not known.get("etag") else {}
    elif begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": known["part"]}
    deadline = time.monotonic() + limits.seconds
    request = urllib.request.Request(url, headers=headers)
    with opener(limits.allow_private).open(request, timeout=limits.silence) as response:
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/xhtml+xml"):
            raise VideoError(f"{shown(url)} is a web page, not a video file; give the address of the file itself")
        going_on = response.status == 206
        begun = begun if going_on else 0
        length = response.headers.get("Content-Length")
        total = begun + int(length) if length and length.isdecimal() else None
        if total is not None and total > limits.most_bytes:
            raise VideoError(_too_large(url, total, limits))
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        strong = etag if etag and not etag.startswith("W/") else modified
        write_json(part.with_suffix(".json"), {"url": shown(url), "part": strong})
        _copy(response, part, begun, total, progress, limits, deadline, url)
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes came")
    name = f"{digest_file(part, digits=32)}.video{_suffix(url, response)}"
    part.replace(folder / name)
    write_json(part.with_suffix(".json"), {"url": shown(url), "file": name, "etag": etag, "modified": modified})
    return name


def _copy(response, part: Path, begun: int, total: int | None, progress, limits: FetchLimits, deadline, url) -> None:
    here = begun
    with open(part, "ab" if begun else "wb") as file:
        while block := response.read1(_BLOCK):  # whatever has come: the time is looked at between
            here += len(block)
            if here > limits.most_bytes:
                raise VideoError(_too_large(url, here, limits))
            if time.monotonic() > deadline:
                raise VideoError(
                    f"{shown(url)}: not here after {limits.seconds:g} s; ask again to go on, or allow more"
                )
            file.write(block)
            if progress is not None:
                progress(here, total)


def shown(url: str) -> str:
    """A URL for messages and records: without what may be a secret."""
    address = urlsplit(url)
    host = address.hostname or ""
    port = f":{address.port}" if address.port else ""
    return f"{address.scheme}://{host}{port}{address.path}" + ("?..." if address.query else "")


def _too_large(url: str, size: int, limits: FetchLimits) -> str:
    return f"{shown(url)} has {size / _GIB:.2f} GiB; at most {limits.most_bytes / _GIB:.2f} GiB are fetched"


def _suffix(url: str, response) -> str:
    name = response.headers.get_filename() or unquote(urlsplit(url).path)
    found = re.search(r"\.[A-Za-z0-9]{1,5}$", name)
    return found[0].lower() if found else ".mp4"


def _read_note(note: Path) -> dict:
    try:
        known = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    # A name from the note must be one of this folder's.
    file = known.get("file") if isinstance(known, dict) else None
    if not isinstance(known, dict) or (file is not None and Path(str(file)).name != file):
        return {}
    return known
