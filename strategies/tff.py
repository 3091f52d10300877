"""Which settings do not go together with a TFF plan (``tff.plan``), and why.

What depends on the contents of a plan is in ``tff_bridge/capabilities.py``.
"""

from __future__ import annotations

from truststram.job import Job
from truststram.sections import ServerKeys

from .refusal import Refusal

__all__ = ["TFF"]


def _steps_on_the_server(job: Job) -> bool:
    usual, keys = ServerKeys(), job.server
    return (keys.optimizer, keys.lr, keys.momentum) != (
        *(usual.optimizer, usual.lr, usual.momentum),
    )


TFF: tuple[Refusal, ...] = (
    Refusal(
        lambda job: bool(job.tff.plan) and _steps_on_the_server(job),
        "server.optimizer, server.lr or server.momentum with tff.plan",
        "the plan brings its own server step, which would not know of them",
        "compile the plan with them (truststram tff compile)",
    ),
    Refusal(
        lambda job: (
            bool(job.tff.plan) and job.privacy.on and job.privacy.unit == "example"
        ),
        "privacy.unit = example with tff.plan",
        "gradients of single examples are inside the plan, where nothing clips them",
        "privacy.unit = client, or a job without tff.plan",
    ),
)
