"""URLs on the command line: fetched with a progress bar, then files like any other."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from videoxl.cli.output import notes


def local_file(source: str, allow_private: bool) -> Path:
    """The path that was given, or the file that a URL was fetched to. Raises `VideoError`."""
    from videoxl.media.fetch import FetchLimits, fetch_video, is_url, shown

    if not is_url(source):
        return Path(source)
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(shown(source), total=None)

        def advance(here: int, total: int | None) -> None:
            bar.update(task, completed=here, total=total)

        return fetch_video(source, advance, FetchLimits(allow_private=allow_private))
