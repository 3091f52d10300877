"""Protobuf messages by hand, right and wrong ones."""

from __future__ import annotations


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def attribute(key: str, value: bytes) -> bytes:
    """Return an entry of a node's attributes."""
    return text(5, text(1, key) + text(2, value))


def calls(function: str) -> bytes:
    """Return the attribute value that names a function."""
    return text(10, text(1, function))


def node(op: str, *attributes: bytes, name: str = "n", device: str = "") -> bytes:
    return text(1, name) + text(2, op) + text(4, device) + b"".join(attributes)


def function(name: str, *nodes: bytes) -> bytes:
    return text(1, text(1, name)) + b"".join(text(3, n) for n in nodes)


def graph(*nodes: bytes, functions: tuple[bytes, ...] = ()) -> bytes:
    library = text(2, b"".join(text(1, f) for f in functions)) if functions else b""
    return b"".join(text(1, n) for n in nodes) + library


def constant(shape: tuple[int, ...], dtype: int = 1) -> bytes:
    """Return a Const whose one value stands for a whole array."""
    dims = b"".join(text(2, number(1, size)) for size in shape)
    tensor = number(1, dtype) + text(2, dims) + text(5, b"\0\0\0\0")
    return node("Const", attribute("value", text(8, tensor)))
