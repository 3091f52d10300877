"""The client half of the stack: one root mod that folds the job's mods.

Flower fixes a ClientApp's mods when the module is imported, before any job is known.
The root mod is registered then, and builds the chain from the run config of each
message, so that train, evaluate and query messages all pass it.
"""

from __future__ import annotations

from functools import partial

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from truststram.techniques import stack

from .node import job_of, permit

__all__ = ["stack_mod"]


def stack_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Pass ``message`` through the mods of its job, outermost first."""
    job = job_of(context)
    stack.check(job)
    permit(job, context)
    handler = call_next
    for mod in reversed(stack.mods(job)):
        handler = partial(_call, mod, handler)
    return handler(message, context)


def _call(mod, inner, message, context):  # type: ignore[no-untyped-def]  # as a Mod, for partial
    return mod(message, context, inner)
