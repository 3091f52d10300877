"""A small federation under homomorphic encryption, in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from strategies.secure.he import Cipher
from strategies.secure.layer import SecureSum
from strategies.secure.mod import secure_mod
from strategies.secure.parameters import Parameters, choose
from strategies.update import delta_mod
from tests.support.federation import config, grid_of, model, plus, reply_content
from truststram.engine import LocalGrid
from truststram.job import Job


def job_of(scheme: str = "bfv", **changes) -> Job:
    keys = {k.replace("_", "-"): v for k, v in changes.items()}
    secure = {f"secure.{k}": v for k, v in keys.items() if "." not in k}
    others = {k: v for k, v in keys.items() if "." in k}
    return Job.of({"secure.scheme": scheme, **secure, **others})


JOBS = {
    "bfv": job_of("bfv"),
    "ckks": job_of("ckks"),
    "decryptor": job_of("bfv", key_holder="decryptor"),
    "decryptor adds": job_of("bfv", key_holder="decryptor", threat="malicious"),
}
every_job = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


@lru_cache(maxsize=16)
def cipher(parameters: Parameters) -> Cipher:
    """A cipher with a key of its own; one for each set of parameters."""
    secret, public = Cipher.generate(parameters)
    return Cipher(parameters, secret, public or None)


def bfv(most: int = 10) -> Cipher:
    return cipher(choose("bfv", most))


def client(job: Job, amount: Callable[[int, int], float], mods=()) -> ClientApp:
    """A client that adds ``amount(partition, round)`` to every weight."""
    app = ClientApp(mods=[*mods, secure_mod(job), delta_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        step = amount(partition, number)
        if np.isnan(step):
            raise ValueError("secret: my data are bad")
        arrays = plus(message.content["arrays"], step)
        content = reply_content(arrays, 10 + partition, score=float(partition))
        return Message(content, reply_to=message)

    return app


class Round:
    """One federation, driven round by round."""

    def __init__(
        self, job: Job, nodes: int = 4, amount=None, mods=(), inner=None
    ) -> None:
        self.job = job
        amount = amount or (lambda partition, number: 0.01 * (partition + 1))
        self.grid: LocalGrid = grid_of(client(job, amount, mods), nodes)
        self.layer = SecureSum(job, inner or FedAvg())
        self.events: list[tuple[str, dict]] = []
        self.layer.emit = lambda kind, **data: self.events.append((kind, data))
        self.base = model(0.5)
        self.number = 0

    def ask(self) -> list[Message]:
        self.number += 1
        return list(
            self.layer.configure_train(self.number, self.base, config(), self.grid)
        )

    def replies(self) -> list[Message]:
        replies = self.grid.send_and_receive(self.ask())
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def finish(self, replies):
        arrays, metrics = self.layer.aggregate_train(self.number, replies)
        if arrays is not None:
            self.base = arrays
        return arrays, metrics

    def run(self):
        return self.finish(self.replies())

    def told(self, kind: str) -> list[dict]:
        return [data for found, data in self.events if found == kind]

    @property
    def codes(self) -> list[str]:
        kinds = ("reply-dropped", "secure-refused")
        return [data["code"] for kind, data in self.events if kind in kinds]
