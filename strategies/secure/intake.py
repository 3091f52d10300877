"""Which replies of a round can be added: every check that needs no key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from flwr.app import Message

from truststram.errors import ProtocolError
from truststram.job import Job
from truststram.records import Spec

from .clear import clear_mean
from .federation import Federation
from .he import Cipher
from .holder import form
from .identity import CLIENT
from .opening import Part
from .selection import Selection
from .terms import UPDATE, Request, terms_of
from .wire import Frame, frame_of, open_frame

__all__ = ["Intake", "Verified"]

Verified = tuple[Message, Frame]


class Intake:
    """The replies to one round's requests.

    Parameters
    ----------
    job : Job
    federation : Federation
    request : Request
        For the updates of the round.
    spec : Spec
        Of the model.
    drop : callable
        ``drop(reply, error)`` is told of every reply that is left out.
    """

    def __init__(
        self,
        job: Job,
        federation: Federation,
        request: Request,
        spec: Spec,
        drop: Callable[[Message, ProtocolError], object],
    ) -> None:
        self._job, self._federation, self._request = job, federation, request
        self._spec, self._drop = spec, drop
        self._terms, self._seen = terms_of(job), set[str]()
        self._cipher = Cipher(self._terms.parameters)

    @cached_property
    def expected(self) -> dict[str, str | int]:
        """What the header of every frame of the round must say."""
        return {
            "scheme": self._job.secure.scheme,
            "job": self._federation.run,
            "round": self._request.round,
            "stage": UPDATE,
            "cohort": self._request.cohort_hash,
            "model": self._request.model,
            "content": self._request.content,
            "parameters": self._terms.hash,
        }

    def fit(self, replies: Iterable[Message]) -> list[Verified]:
        """Return the replies that can be added, one a node."""
        verified = list(self._each(replies, self._verified))
        if not verified:
            return []
        kinds = [_kind(frame) for _, frame in verified]
        common = Counter(kinds).most_common(1)[0][0]
        found = dict(zip((id(reply) for reply, _ in verified), verified, strict=True))

        def agreed(reply: Message) -> Frame:
            frame = found[id(reply)][1]
            if _kind(frame) != common:
                text = "made with another key than most frames, or of another form"
                raise ProtocolError("key", text)
            self._check_content(reply, frame)
            return frame

        return list(self._each((reply for reply, _ in verified), agreed))

    def added(self, replies: Sequence[Verified]) -> Part:
        """Return the encrypted sum of replies that :meth:`fit` has returned."""
        frames = [frame for _, frame in replies]
        size = self._terms.slots(frames[0].header.about).size
        total = self._cipher.add([frame.body for frame in frames], size)
        return Part(frames, total, size)

    def _each(
        self, replies: Iterable[Message], check: Callable[[Message], Frame]
    ) -> Iterable[Verified]:
        for reply in replies:
            try:
                frame = check(reply)
            except ProtocolError as error:
                self._drop(reply, error)
            else:
                yield reply, frame

    def _verified(self, reply: Message) -> Frame:
        """Return the frame of a reply if it is right in itself."""
        if reply.has_error():
            text = f"{reply.error.code}: {reply.error.reason or ''}"
            raise ProtocolError("client-error", text[:300])
        # A linear codec may lengthen an update to a power of two.
        values = 2 * self._spec.size + 64
        most = self._terms.parameters.most_bytes(values + 512)
        data, roster = frame_of(reply.content), self._federation.roster
        frame = open_frame(data, roster, self.expected, most)
        if frame.member.role != CLIENT:
            raise ProtocolError("role", "a decryptor does not train")
        self._federation.bind(reply.metadata.src_node_id, frame.member)
        if frame.member.name in self._seen:
            raise ProtocolError("duplicate", "the node has replied already")
        if self._terms.slots(frame.header.about).values > values:
            raise ProtocolError("header", "longer than any update")
        self._seen.add(frame.member.name)
        return frame

    def _check_content(self, reply: Message, frame: Frame) -> None:
        """Refuse a body that is no ciphertext, and values in clear that are wrong."""
        size = self._terms.slots(frame.header.about).size
        self._cipher.check(frame.body, size)
        if self._job.secure.layers:
            selection = Selection.of(self._spec, self._job.secure.layers)
            clear_mean([(reply.content, frame)], selection, 1.0)


def _kind(frame: Frame) -> str:
    return repr((frame.header.key, form(frame)))
