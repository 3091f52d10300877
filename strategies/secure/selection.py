"""Which parameters of a model are encrypted: selective encryption by layer name.

Jin et al., "FedML-HE", arXiv 2303.10837, encrypt the parameters that tell most. Here
the owner of the model names them: ``secure.layers`` is a list of patterns
(:mod:`fnmatch`) of array names, separated by commas; empty means everything. What is
not named travels in clear, from each node to the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from truststram.errors import ConfigError
from truststram.records import Float32, Spec

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """Places of the flat update that are encrypted, and all others.

    Attributes
    ----------
    sealed, clear : tuple of slice
        Together all of ``[0, size)``.
    names : tuple of str
        Arrays that stay in clear.
    size : int
    """

    sealed: tuple[slice, ...]
    clear: tuple[slice, ...]
    names: tuple[str, ...]
    size: int

    @classmethod
    def of(cls, spec: Spec, patterns: str) -> Selection:
        """Return the selection that ``secure.layers`` makes in a model.

        Raises
        ------
        ConfigError
            For a pattern that no floating-point array of the model matches.
        """
        wanted = [p.strip() for p in patterns.split(",") if p.strip()] or ["*"]
        leaves = [leaf for leaf in spec.leaves if leaf.is_float]
        for pattern in wanted:
            if not any(fnmatchcase(leaf.name, pattern) for leaf in leaves):
                known = ", ".join(leaf.name for leaf in leaves[:20])
                raise ConfigError(
                    f"secure.layers: {pattern} matches no array of the model. Its "
                    f"arrays: {known}."
                )
        sealed, clear, names = [], [], []
        for leaf in leaves:
            place = slice(leaf.offset, leaf.offset + leaf.size)
            if any(fnmatchcase(leaf.name, pattern) for pattern in wanted):
                sealed.append(place)
            else:
                clear.append(place)
                names.append(leaf.name)
        return cls(tuple(sealed), tuple(clear), tuple(names), spec.size)

    @property
    def clear_size(self) -> int:
        """Values that stay in clear."""
        return sum(place.stop - place.start for place in self.clear)

    def split(self, update: Float32) -> tuple[Float32, Float32]:
        """Return what is encrypted and what stays in clear, each one vector."""
        if not self.clear:
            return update, update[:0]
        return _gathered(update, self.sealed), _gathered(update, self.clear)

    def join(self, sealed: Float32, clear: Float32, out: Float32) -> None:
        """Write the update that :meth:`split` took apart to ``out``."""
        if not self.clear:
            out[:] = sealed
            return
        for values, places in ((sealed, self.sealed), (clear, self.clear)):
            at = 0
            for place in places:
                size = place.stop - place.start
                out[place] = values[at : at + size]
                at += size


def _gathered(update: Float32, places: tuple[slice, ...]) -> Float32:
    parts = [update[place] for place in places]
    return np.concatenate(parts) if parts else update[:0]
