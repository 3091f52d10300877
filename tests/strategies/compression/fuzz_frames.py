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


def main() -> None:
    """Write the first inputs and fuzz until libFuzzer ends the process."""
    import atheris  # only here: test runs import this module without it

    with atheris.instrument_imports(include=["strategies.compression"]):
        from strategies.compression import rice, wire
    from tests.strategies.compression.hostile import forged, good_frames, judge, sealed

    kinds = len(wire.FRAMES)

    def one(data: bytes) -> None:
        """Anything but ProtocolError, an AssertionError included, is a find."""
        if not data:
            return
        kind, rest = data[0] % (kinds + 2), data[1:]
        if kind < kinds:
            judge(forged(wire.FRAMES[kind], rest))
        elif kind == kinds and len(rest) >= wire.HEADER_BYTES:
            judge(sealed(rest))
        else:
            judge(rest)

    arguments = [a for a in sys.argv if a != "--plant"]
    if "--plant" in sys.argv:  # believe what a frame says about its sizes
        rice.lengthen = lambda data, n: data
    corpus = Path(arguments[1])
    for number, frame in enumerate(good_frames().values()):
        payload = frame[wire.HEADER_BYTES :]
        (corpus / f"payload-{number}").write_bytes(bytes([number]) + payload)
        (corpus / f"frame-{number}").write_bytes(bytes([kinds]) + frame)
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
