"""The server's end of the downlink chain: see :mod:`.downlink`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from truststram.records import Float32, pack, unflatten, view
from truststram.rng import derive

from ..update import Model
from . import wire
from .codecs import Codec
from .downlink import model_hash, parts_of, unpacked

__all__ = ["Chain", "moved"]

# A node that steps led to another model as often as this, and never to the right one in
# between, gets whole models: its arithmetic is another one than the server's.
MOST_MISSES = 2


class Chain:
    """The server's end: M_t, and the steps that lead to it.

    Parameters
    ----------
    codec : Codec
    seed : int
        Of stochastic rounding and rotations; public.

    Attributes
    ----------
    versions : list of bytes
        Hashes of M_s, ..., M_t; between two of them lies one frame of ``steps``.
    """

    def __init__(self, codec: Codec, seed: int) -> None:
        self._codec, self._seed = codec, seed
        self._model: Model | None = None
        self._number = 0  # of steps, for their randomness
        self._source = b""  # hash of the x_t that M_t was made for
        self._flat: Float32 | None = None
        self._held: dict[str, bytes] = {}
        self._misses: Counter[str] = Counter()
        self.versions: list[bytes] = []
        self.steps: list[bytes] = []

    def advance(self, x: Model) -> Model:
        """Return M_t for the server's model x_t; the same again for the same x_t."""
        source = model_hash(x)
        if self._flat is None:
            self._restart(x)
        elif source != self._source:
            self._step(x)
        elif self._model is None:  # after a resume
            self._name(self._flat, x)
        self._source = source
        assert self._model is not None
        return self._model

    def since(self, node: str) -> range | None:
        """Return which of ``steps`` a node needs; None: all of M_t.

        Steps are kept while they are smaller than the model.
        """
        held = self._held.get(node, b"")
        if held not in self.versions or self._misses[node] >= MOST_MISSES:
            return None
        return range(self.versions.index(held), len(self.steps))

    def acknowledged(self, node: str, version: bytes, stepwise: bool = False) -> None:
        """Note that a node says that it has a model, made of steps or sent whole."""
        self._held[node] = version
        if stepwise:
            del self._misses[node]

    def missed(self, node: str, differs: bool) -> bool:
        """Note that a node could not make M_t: it gets all of it next time.

        Parameters
        ----------
        node : str
        differs : bool
            Steps led it to another model; else it had none that they start from.

        Returns
        -------
        bool
            Whether it gets whole models from now on.
        """
        self._held.pop(node, None)
        self._misses[node] += differs
        return differs and self._misses[node] == MOST_MISSES

    def _restart(self, x: Model) -> None:
        self.steps, self.versions = [], []
        self._name(x.flat, x)

    def _step(self, x: Model) -> None:
        assert self._flat is not None
        name = wire.spec_hash(x.spec)
        rng = derive(self._seed, "downlink", self._number)
        self._number += 1
        with np.errstate(over="ignore", invalid="ignore"):
            difference = x.flat - self._flat
        try:
            frame = wire.pack(self._codec, difference, spec_hash=name, rng=rng)
        except ValueError:  # not finite: there is no step to such a model
            self._restart(x)
            return
        flat = self._flat + unpacked(frame, x.spec)
        if not np.isfinite(flat).all() or self._integers_changed(x):
            self._restart(x)
            return
        if self.versions:  # else, after a resume, nobody has what it starts from
            self.steps.append(frame)
        self._name(flat, x)

    def _integers_changed(self, x: Model) -> bool:
        return self._model is not None and parts_of(self._model)[1:] != parts_of(x)[1:]

    def _name(self, flat: Float32, x: Model) -> None:
        """Make M_t's record and hash; forget steps that take more than all of it."""
        arrays = unflatten(flat, x.spec, x.arrays)
        self._model = Model(arrays)
        self._flat = self._model.flat  # rounded, where the model has shorter floats
        self.versions.append(model_hash(self._model))
        most = arrays.count_bytes()
        while sum(map(len, self.steps)) > most:
            del self.steps[0], self.versions[0]

    def state(self) -> dict[str, Any]:
        """Return M_t and what the next step depends on.

        Not the steps and who has which model: nodes may have been restarted as well,
        so whoever takes part after a resume gets all of M_t.
        """
        number, source = self._number, self._source.hex()
        return {"model": self._flat, "number": number, "source": source}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        flat = state["model"]
        self._flat = None if flat is None else np.array(flat, np.float32)
        self._number = int(state["number"])
        self._source = bytes.fromhex(state["source"])
        self._model, self.versions, self.steps = None, [], []
        self._held.clear()


def moved(arrays: ArrayRecord, seen: Model, exact: Model) -> ArrayRecord:
    """Return ``exact + (arrays - seen)``: the update applied to the server's model."""
    record = ArrayRecord()
    for leaf in exact.spec.leaves:
        array = arrays[leaf.name]
        if leaf.is_float:
            values, was, base = (
                view(x[leaf.name], leaf.dtype, leaf.shape)
                for x in (arrays, seen.arrays, exact.arrays)
            )
            array = pack((values + (base - was)).astype(leaf.dtype, copy=False))  # type: ignore[operator]  # floats
        record[leaf.name] = array
    return record
