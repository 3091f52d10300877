"""Bytes shortened by zstd, and back without trust in what a frame declares."""

from __future__ import annotations

import zstandard

from truststram.errors import ProtocolError

__all__ = ["lengthen", "shorten"]

# Codes and places have a spread, few repetitions. What zstd gains is by Huffman codes,
# and short matches, which are accidents here, would take from that and from the speed:
# so matches of 7 bytes at least, of what was seen just before.
PARAMETERS = zstandard.ZstdCompressionParameters.from_level(
    1, min_match=7, hash_log=6, window_log=19
)


def shorten(raw: bytes) -> bytes:
    """Return ``raw`` as a zstd frame if that is shorter, else ``raw`` itself."""
    small = zstandard.ZstdCompressor(compression_params=PARAMETERS).compress(raw)
    return small if len(small) < len(raw) else raw


def lengthen(data: memoryview, n: int) -> memoryview:
    """Return the n bytes of which :func:`shorten` made ``data``.

    Whether zstd was used is told by the length. At most n bytes are allocated.

    Raises
    ------
    ProtocolError
        ``zstd``: more than n bytes, or not one frame that declares and holds n bytes.
    """
    if len(data) == n:
        return data
    try:
        # zstd makes room for what a frame declares, so that is read first.
        if len(data) > n or zstandard.frame_content_size(data) != n:
            raise ProtocolError("zstd", f"{len(data)} bytes do not stand for {n}")
        tool = zstandard.ZstdDecompressor(max_window_size=1 << PARAMETERS.window_log)
        raw = tool.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError:
        raise ProtocolError("zstd", "not a zstd frame") from None
    if len(raw) != n:
        raise ProtocolError("zstd", f"{len(raw)} bytes, not {n}")
    return memoryview(raw)
