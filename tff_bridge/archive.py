"""Zip archives in and out of memory: repeatable out, bounded in."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from truststram.errors import ProtocolError

__all__ = ["pack", "read_file", "unpack"]

MAX_FILE = 1 << 28
MAX_UNPACKED = 1 << 29
MAX_ENTRIES = 64
MAX_DIRECTORY = 1 << 16
# Deflate cannot pack better than 1032:1; honest graphs reach 12:1.
MAX_RATIO = 200
_SMALL = 1 << 20
# The record at the end: signature, disks, entries (twice), size and place of the
# directory, length of a comment (APPNOTE.TXT 4.3.16); before it, the locator of zip64.
_END, _SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\5\6"
_ZIP64_SIGNATURE, _ZIP64_SIZE = b"PK\6\7", 20


def read_file(path: Path) -> bytes:
    """Return a file's bytes, no more than :data:`MAX_FILE`.

    Raises
    ------
    ProtocolError
        ``plan-size`` if it is larger, ``plan-archive`` if it is no regular file.
    """
    with path.open("rb") as file:
        # A device or pipe may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ProtocolError("plan-archive", f"{path} is not a file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ProtocolError("plan-size", f"a plan has at most {MAX_FILE} bytes")
    return data


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of ``files``; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            # The constructor's date is fixed, and so are system and rights.
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name], compresslevel=9)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """Return the files of an untrusted archive, by name.

    The end record is read before ``zipfile`` parses a directory, whose size and number
    of entries it bounds. Number, declared sizes and names are checked before anything
    is unpacked, and no entry is read beyond its declared size. Nothing is written to
    disk.

    Raises
    ------
    ProtocolError
        ``plan-archive`` for what is not a plain archive, ``plan-size`` for too many or
        too large files.
    """
    if len(data) > MAX_FILE:
        raise ProtocolError("plan-size", f"a plan has at most {MAX_FILE} bytes")
    _check_end(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check(entries)
            return {entry.filename: _content(archive, entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        raise ProtocolError("plan-archive", type(error).__name__) from None
    except (NotImplementedError, RuntimeError, OverflowError) as error:
        raise ProtocolError("plan-archive", type(error).__name__) from None


def _check_end(data: bytes) -> None:
    """Refuse a long directory, by an end record that zipfile finds at the same place.

    Without a comment it is the last thing in the file; without zip64 it has the sizes.
    """
    if len(data) < _END.size:
        raise ProtocolError("plan-archive", "it is too short")
    last = data[-_END.size - _ZIP64_SIZE :]
    signature, *_, entries, size, _, comment = _END.unpack(last[-_END.size :])
    if signature != _SIGNATURE or comment or last.startswith(_ZIP64_SIGNATURE):
        raise ProtocolError("plan-archive", "it does not end as a plain archive")
    if entries > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise ProtocolError("plan-size", f"a plan has at most {MAX_ENTRIES} files")


def _check(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ProtocolError("plan-size", f"a plan has at most {MAX_ENTRIES} files")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise ProtocolError("plan-size", f"more than {MAX_UNPACKED} bytes unpacked")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ProtocolError("plan-archive", "two files have the same name")
    for entry in entries:
        if entry.flag_bits & 0x1:
            raise ProtocolError("plan-archive", "an encrypted file")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ProtocolError("plan-archive", "an unusual compression")
        if entry.file_size > _SMALL + MAX_RATIO * entry.compress_size:
            raise ProtocolError("plan-size", "a file that unpacks to too many bytes")


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise ProtocolError("plan-archive", "a file has another size than declared")
    return content
