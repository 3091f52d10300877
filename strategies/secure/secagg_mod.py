"""Client half of secure aggregation: every stage of :mod:`.secagg` as a train message.

With this mod outermost, a node's update, its number of examples and its metrics leave
inside one masked, signed vector; evaluation and texts of errors do not leave at all.
The app is called in one stage only and sees an ordinary train message, so any ClientApp
with a train function takes part.

Before it trains, a node checks that enough others are there, that all of them
advertised keys for the same model and settings, and that what it got is what they are
for (:mod:`.given`). Before it consents to a sum or opens it, it notes who is in it
(:mod:`.journal`) and refuses another set for the same model, whatever settings come
with it: from two sums that differ by one node, the server could subtract. A round whose
sum was never opened may be repeated with other nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from truststram.errors import ConfigError, ProtocolError
from truststram.job import Job
from truststram.records import Float32
from truststram.rng import derive

from ..withheld import WithheldError
from .contribution import numbers_of, reported, training_mod, update_of
from .given import check_given
from .graph import MALICIOUS, quorums_meet
from .integers import Int64, read_integers
from .journal import Journal
from .keys import Keyring, keyring_of
from .quantise import Coder
from .secagg_client import Client
from .secagg_state import RoundState
from .secagg_wire import KEYS, MASK, SCHEME, Request, Settings, label_of, word_of
from .sizes import largest_group
from .wire import seal, with_frame

__all__ = ["secagg_mod"]

CURE = "the same nodes may repeat it; another job begins with another run.seed"


def secagg_mod(job: Job, encoder: Callable[[int], Coder] | None = None) -> Mod:
    """Return the mod for a job with ``secure.scheme = secagg``; the outermost.

    Parameters
    ----------
    job : Job
        Its ``secure`` section and ``run.seed``, which decides how values are rounded.
    encoder : callable, optional
        As in :class:`.secagg_wire.Settings`; the same on the server.

    Guarantees
    ----------
    Those of :mod:`.secagg` for the integers of this node, which hold the update and
    everything else that the functions inside report. A node answers each stage once for
    the keys that it made; a server that begins a round again gets new keys, other masks
    and no sum of another set of nodes. What a node contributes, nobody checks: a
    malicious one may send any values up to ``secure.clip`` each, or within their ranges
    where the app replies with integers of its own (:mod:`.whole`).

    Raises
    ------
    ConfigError
        For a job with another scheme.
    """
    if job.secure.scheme != SCHEME:
        raise ConfigError(f"secagg_mod needs secure.scheme = {SCHEME}.")
    settings = Settings(job, encoder)

    def answer(
        message: Message, context: Context, call_next: ClientAppCallable
    ) -> Message:
        return _Node(settings, message, context).answer(call_next)

    return training_mod(answer)


class _Node:
    """Answers one message."""

    def __init__(self, settings: Settings, message: Message, context: Context) -> None:
        self.settings, self.message, self.context = settings, message, context
        self.request = Request.of(message.content)
        self.run = str(context.run_id)
        self.keyring: Keyring = keyring_of(context, settings.job)
        self.state = RoundState(context, self.keyring.folder)
        session = settings.session(self.run, self.request)
        self.client = Client(session, self.keyring.identity, self.keyring.roster)
        self.journal = Journal(context, SCHEME, self.keyring.folder)

    def answer(self, call_next: ClientAppCallable) -> Message:
        """Return the reply: a frame. The state is never there twice."""
        client, body = self.client, self.request.body
        if self.request.stage == KEYS:
            reply = self._frame("", client.keys())
        else:
            client.restore(self.state.take(client.session.tag))
            if self.request.stage == MASK:
                reply = self._masked(call_next)
            else:
                stage = {
                    "shares": client.shares,
                    "consent": client.consent,
                    "unmask": client.unmask,
                }
                answer = stage[self.request.stage](body)
                if self.request.stage != "shares":
                    self._commit()
                reply = self._frame(client.cohort.tag.hex(), answer)
        if not client.done:
            self.state.put(client.session.tag, client.state())
        return Message(with_frame(reply), reply_to=self.message)

    def _commit(self) -> None:
        """Note who is in the sum, before this node's word or shares leave it."""
        try:
            self.journal.open(self.request.model, self.client.left)
        except ProtocolError as error:
            raise ProtocolError(error.code, f"{error.detail}; {CURE}") from None

    def _frame(self, cohort: str, body: bytes | memoryview, **about: object) -> bytes:
        header = self.settings.header(self.run, self.request, cohort, **about)
        return seal(self.keyring.identity, header, body)

    def _masked(self, call_next: ClientAppCallable) -> bytes:
        """Train, and return the masked update and numbers."""
        self.client.open(self.request.body)
        cohort = self.client.cohort
        request = self.request
        arrays = check_given(self.message, request.model, request.content)
        if self.settings.job.secure.keeps_groups:
            most = largest_group(self.settings.job)
            self.journal.together(self.run, cohort.names, most)
        if self.settings.job.secure.threat == MALICIOUS:
            self.journal.mask(request.model, cohort.names, quorums_meet)
        found = reported(self.message, self.context, call_next)
        settings, update = self._contributed(found, arrays)
        metrics, examples = numbers_of(found)
        about = settings.about(len(update), metrics)
        values = self._integers(settings, about, update, examples, metrics)
        self.client.mask(values)
        return self._frame(cohort.tag.hex(), values.data.cast("B"), **about)

    def _contributed(
        self, found: RecordDict, arrays: ArrayRecord
    ) -> tuple[Settings, Float32 | Int64]:
        """Return the update, or what the app has as integers, and how it is encoded."""
        own = read_integers(found, self.settings.job.secure.max_cohort)
        if own is None:
            return self.settings, update_of(found, arrays)
        values, whole = own
        return replace(self.settings, whole=whole), values

    def _integers(
        self,
        settings: Settings,
        about: Mapping[str, object],
        update: Float32 | Int64,
        examples: int,
        metrics: Mapping[str, float],
    ) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
        """Return what is masked: the quantised update and the counters, shape (n,)."""
        name, job = self.keyring.identity.member.name, self.settings.job
        rng = derive(job.run.seed, "rounding", name, self.request.round)
        label = label_of(self.client.session)
        try:
            slots = settings.slots(about)
            vector = slots.fill(update, examples, metrics, label, rng)
        except (ValueError, ProtocolError):  # not a number, or unusual metrics
            raise WithheldError("the update cannot be encoded") from None
        return vector.astype(word_of(slots), copy=False)
