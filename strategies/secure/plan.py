"""What is settled before the nodes of an encrypted sum are asked.

What the run says of its sums, and which cohorts are not asked because their sum could
not be told, or no message could carry it.
"""

from __future__ import annotations

from typing import Any

from truststram.errors import ConfigError, ProtocolError
from truststram.records import Spec

from .federation import Federation
from .identity import DECRYPTOR
from .selection import Selection
from .terms import Terms
from .told import Told
from .trust import trust_line

__all__ = ["WAITS", "check_roster", "check_traffic", "fits", "objection", "plan_of"]

# Bytes of one message to a decryptor that adds.
LARGEST_MESSAGE = 2**30
WAITS = (
    "A sum with some of these nodes may have been told for this model; until the model "
    "changes, it must be the same nodes, or others altogether"
)


def check_roster(terms: Terms, federation: Federation) -> None:
    """Refuse a second decryptor where one adds: each has a memory of its own.

    Raises
    ------
    ConfigError
    """
    decryptors = sum(m.role == DECRYPTOR for m in federation.roster)
    if terms.adds and decryptors > 1:
        raise ConfigError(
            f"The roster has {decryptors} decryptors. With secure.threat = malicious "
            "there can be one: two could be asked for sums that differ by one node."
        )


def plan_of(terms: Terms, federation: Federation, spec: Spec) -> dict[str, Any]:
    """Return who must collude to see more, and what is not encrypted, for an event."""
    keys, p = terms.job.secure, terms.parameters
    selection = Selection.of(spec, keys.layers)
    size, clear = selection.size, selection.clear_size
    return {
        "scheme": keys.scheme,
        "trust": trust_line(terms.job),
        "bits": p.bits,
        "clip": keys.clip,
        "most": p.most,
        "encrypted": size - clear,
        "clear": clear,
        "clear_fraction": round(clear / max(size, 1), 6),
        "clear_arrays": list(selection.names)[:100],
        "keys": "simulated" if federation.simulated else "operator",
    }


def objection(
    terms: Terms, nodes: int, largest: int, told: Told
) -> ProtocolError | None:
    """Return why so many nodes are not asked, or None if they can be.

    Parameters
    ----------
    terms : Terms
    nodes : int
        That would be asked.
    largest : int
        How many of them can be in one sum, at most.
    told : Told
    """
    keys = terms.job.secure
    if not (nodes < terms.least or largest > terms.parameters.most):
        return None
    text = (
        f"{nodes} nodes can be asked; a sum has from {terms.least} "
        "(secure.min-cohort, secure.colluders) to "
        f"{keys.max_cohort} (secure.max-cohort)"
    )
    if told.sets:
        text += f". {WAITS}"
    return ProtocolError("cohort-size", text)


def fits(size: int) -> bool:
    """Return whether one message to a decryptor can carry so many bytes of frames."""
    return size <= LARGEST_MESSAGE


def check_traffic(terms: Terms, largest: int, spec: Spec) -> None:
    """Refuse sums of so many nodes, if no message could carry their frames.

    Raises
    ------
    ConfigError
    """
    if not terms.adds or terms.job.compression.codec != "none":
        return  # what a codec leaves is known when the updates are there
    frame = terms.parameters.most_bytes(spec.size)
    if not fits(largest * frame):
        raise ConfigError(
            f"The decryptor would get {largest} frames of {frame:,} bytes in one "
            f"message, and {LARGEST_MESSAGE:,} bytes are the most. Lower "
            "round.fraction, choose what is encrypted with secure.layers, or use "
            "secure.threat = semi-honest or secure.scheme = secagg."
        )
