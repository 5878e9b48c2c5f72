"""Places of logs: folders of this machine, and URLs of file systems elsewhere, such as `s3://bucket/logs`."""

from __future__ import annotations

from pathlib import Path

from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]


def local_folder(place: str | Path) -> Path | None:
    """Return the path of a folder; None if it is not on this machine.

    Raises:
        ImportError: A package is missing that this kind of URL needs.
        ValueError: The kind of URL is unknown.
    """
    if "://" not in str(place):
        return Path(place)
    files, path = url_to_fs(str(place))
    return Path(path) if isinstance(files, LocalFileSystem) else None


def write_file(place: str | Path, name: str, content: bytes) -> str:
    """Write a file, and return the folder that it is in, as a path or as a URL; errors are those of the file system.

    Args:
        place: A folder, which need not exist.
        name: The name of the file, after those of folders below, as in `cam/heatmaps.png`.
        content: What to write.
    """
    local = local_folder(place)
    if local is not None:
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path.parent)
    url = f"{str(place).rstrip('/')}/{name}"
    files, remote = url_to_fs(url)
    files.makedirs(remote.rpartition("/")[0], exist_ok=True)
    files.pipe_file(remote, content)
    return url.rpartition("/")[0]
