"""Which settings do not go together with compression, and why.

Not refused, because it is sound:

- Robust rules and detection: updates are decoded before anything looks at them.
- Noise by the server: it clips every decoded update, so the sensitivity is the clip
  whatever a codec or error feedback made of the norm.
- Noise by the nodes: encoding, and feedback of what a codec left out, are functions of
  the noised update. The chain on the way down is one of released models.
"""

from __future__ import annotations

from truststram.job import Job
from truststram.private_sections import CompressionKeys

from ..refusal import Refusal
from .shared import LINEAR

__all__ = ["COMPRESSION"]

WITH_RATIO = ("topk", "topk-q8", *LINEAR)
BIASED = (*WITH_RATIO, "adaptive")


def _unread(job: Job) -> list[str]:
    """Return the settings that nothing would read."""
    keys, default = job.compression, CompressionKeys()
    readers = {
        "ratio": keys.codec in WITH_RATIO or keys.downlink in WITH_RATIO,
        "error_feedback": keys.codec in BIASED,
        "error_tolerance": keys.codec == "adaptive",
        "target_seconds": keys.codec == "adaptive",
    }
    return [
        name
        for name, read in readers.items()
        if not read and getattr(keys, name) != getattr(default, name)
    ]


def _secure(job: Job) -> bool:
    return job.secure.scheme != "none"


COMPRESSION: tuple[Refusal, ...] = (
    Refusal(
        lambda job: bool(_unread(job)),
        "a setting of compression that the codecs do not read",
        "ratio is of topk and randk codecs, error-feedback of those and adaptive, "
        "error-tolerance and target-seconds of adaptive: it would have no effect",
        "set compression.codec (or downlink) too, or leave the setting out",
    ),
    Refusal(
        lambda job: _secure(job) and job.compression.codec not in ("none", *LINEAR),
        "compression.codec with secure.scheme",
        "a sum of encoded updates is no update, and places that one node chose would "
        "tell about its data",
        "compression.codec = topk-shared or randk: the same places for all nodes",
    ),
    Refusal(
        lambda job: _secure(job) and job.compression.downlink != "none",
        "compression.downlink with secure.scheme",
        "the server must know which model each node has, and a secure sum hides what "
        "single nodes answer",
        "compression.downlink = none",
    ),
    Refusal(
        lambda job: job.compression.codec == "adaptive" and job.privacy.central,
        "compression.codec = adaptive with privacy by the server",
        "its decisions about single nodes are told, which nobody accounted for, and "
        "show who took part",
        "another compression.codec; any of them goes with central privacy",
    ),
)
