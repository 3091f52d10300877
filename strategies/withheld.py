"""What happens on a node stays there, the texts of its errors included."""

from __future__ import annotations

from logging import ERROR

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.logger import log

from truststram.errors import TrustStramError

__all__ = ["WithheldError", "withheld"]


class WithheldError(TrustStramError):
    """Something failed on the node; only this is said."""


def withheld(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    what: str = "training",
) -> Message:
    """Call the functions inside; say nothing about how they failed.

    Raises
    ------
    WithheldError
        The one that was raised inside, since its text is made for leaving the node
        (a budget that is spent, say); for anything else one without its text, which
        goes to the node's own log by type.
    """
    try:
        return call_next(message, context)
    except WithheldError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it may tell of data
        kind = type(error).__name__
    # Outside the handler, so that the error has no context to be printed.
    log(ERROR, "%s failed (%s); what it says is withheld", what, kind)
    raise WithheldError(f"{what} failed; the reason stays on the node")
