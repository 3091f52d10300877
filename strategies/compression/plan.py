"""What compression will cost and lose, told before the first round."""

from __future__ import annotations

from typing import Any

from truststram.records import Spec

from .codecs import make_codec
from .selection import count

__all__ = ["planned", "raw_bytes"]

# What an array of NumPy's format has beside its values, and the names of the record.
RAW_EXTRA = 139


def raw_bytes(spec: Spec) -> int:
    """Return the bytes of an update that is not encoded: float32 and its header."""
    return 4 * spec.size + RAW_EXTRA


def planned(
    spec: Spec, codec: str, ratio: float, downlink: str, reduced: bool = False
) -> dict[str, Any]:
    """Return what to expect of a node's messages in a round.

    Returns
    -------
    dict
        ``codec``, ``ratio``, ``downlink``, ``parameters``, ``raw`` (bytes of an update
        as float32), ``up`` and ``down`` (expected bytes of a frame; absent: not
        compressed, chosen during the run, or the secure sum's business), ``values``
        (how many of the parameters are in a secure sum), ``error`` (expected part of an
        update's squared length that is lost in a round; absent: depends on the update).
    """
    d = spec.size
    plan: dict[str, Any] = {"codec": codec, "ratio": ratio, "downlink": downlink}
    plan |= {"parameters": d, "raw": raw_bytes(spec)}
    if codec not in ("none", "adaptive"):
        made = make_codec(codec, ratio)
        if reduced:
            plan["values"] = count(ratio, d)
        else:
            plan["up"] = round(made.predicted_bytes(d))
        if (error := made.predicted_error(d)) is not None:
            plan["error"] = float(f"{error:.4g}")
    if downlink != "none":
        plan["down"] = round(make_codec(downlink, ratio).predicted_bytes(d))
    return plan
