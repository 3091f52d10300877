"""Coverage-guided fuzzing of the decoders with atheris.

``python -m tests.strategies.compression.fuzz_frames [--plant] CORPUS OPTIONS``: options
are libFuzzer's (``-max_total_time=60``). The first byte of an input says what the rest
is: a whole frame, a frame whose length and checksum are mended, or the payload of one
of the kinds of frames, so that the checksum keeps nothing from the decoders. With
``--plant`` one of the decoders has a mistake that the fuzzer must find.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["strategies.compression"]):
    from strategies.compression import rice, wire
from tests.strategies.compression.hostile import forged, good_frames, judge, sealed

KINDS = len(wire.FRAMES)


def one(data: bytes) -> None:
    """Judge one input: an AssertionError or anything but ProtocolError is a find."""
    if not data:
        return
    kind, rest = data[0] % (KINDS + 2), data[1:]
    if kind < KINDS:
        judge(forged(wire.FRAMES[kind], rest))
    elif kind == KINDS and len(rest) >= wire.HEADER_BYTES:
        judge(sealed(rest))
    else:
        judge(rest)


def plant() -> None:
    """Let the decoder of indices believe what a frame says about its sizes."""
    rice.lengthen = lambda data, n: data


def main() -> None:
    """Write the first inputs and fuzz until libFuzzer ends the process."""
    arguments = [a for a in sys.argv if a != "--plant"]
    if len(arguments) != len(sys.argv):
        plant()
    corpus = Path(arguments[1])
    for number, frame in enumerate(good_frames().values()):
        payload = frame[wire.HEADER_BYTES :]
        (corpus / f"payload-{number}").write_bytes(bytes([number]) + payload)
        (corpus / f"frame-{number}").write_bytes(bytes([KINDS]) + frame)
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
