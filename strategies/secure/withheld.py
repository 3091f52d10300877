"""What happens on a node stays there: :mod:`..withheld`."""

from ..withheld import WithheldError, withheld

__all__ = ["WithheldError", "withheld"]
