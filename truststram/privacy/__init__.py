"""What a guarantee means before a run, and whether it holds after one.

``truststram privacy plan``, ``audit`` and ``report`` print what these modules compute:

:mod:`.plan`
    the guarantee, every mechanism at its budget, and how loud the noise is;
:mod:`.audit`
    a game against the real server layers, whose outcome bounds epsilon from below;
:mod:`.membership`, :mod:`.inversion`
    the two best-known attacks, on a finished run;
:mod:`.report`
    what a finished run guarantees, from its verified record.
"""
