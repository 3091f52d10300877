"""What every Python of a local simulation runs first: this folder is its PYTHONPATH.

Flower's simulation imports TensorFlow wherever that is installed, in each of its
processes and at their start, for an option about GPUs that no run of ours has: seconds
each time. The module with that import is replaced. An app that uses TensorFlow gets it
when it imports it.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

NAME = "flwr.simulation.ray_transport.utils"


def enable_tf_gpu_growth() -> None:
    """Refuse: the option has no effect here."""
    raise RuntimeError("TensorFlow's GPU growth is no option of a local simulation")


if __name__ == "sitecustomize":
    replaced = ModuleType(NAME)
    replaced.__dict__["enable_tf_gpu_growth"] = enable_tf_gpu_growth
    sys.modules[NAME] = replaced
    # The module of this name that the folder hides, if there is one.
    folder = str(Path(__file__).resolve().parent)
    elsewhere = [path for path in sys.path if path != folder]
    hidden = PathFinder.find_spec("sitecustomize", elsewhere)
    if hidden and hidden.loader:
        hidden.loader.exec_module(module_from_spec(hidden))
