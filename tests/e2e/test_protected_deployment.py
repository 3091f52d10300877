"""Secure sums and compression between real SuperNodes, as operators set them up.

Every message is answered by a process of its own, so whatever a node must remember is
in its files; ``context.state`` is gone with the SuperNode.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec

from strategies.stores import FolderStore
from tests.e2e.test_deployment import BIN, Federation, wait
from truststram.engine import run_local
from truststram.events import Event
from truststram.job import Job
from truststram.result import RunResult

pytestmark = pytest.mark.slow

# Deployed nodes have ids for names, and so other seeds in every run: with equal shares
# of the data accuracies are alike all the same (0.93 to 0.96 after three rounds).
JOB = {"train.local-epochs": 1, "data.partitioner": "iid"}


@pytest.fixture
def federation(tmp_path: Path, root: Path) -> Iterator[Federation]:
    found = Federation(tmp_path, root)
    yield found
    found.close()


def keys(*command: object) -> None:
    """Run ``truststram keys``, as an operator does."""
    done = subprocess.run(
        [BIN / "truststram", "keys", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def identities(folder: Path, names: str) -> dict[str, Path]:
    """Return the folder of keys of each node, with its identity in it."""
    for name in names:
        keys("identity", name, "--out", folder / name)
    return {name: folder / name for name in names}


def roster(folders: dict[str, Path], names: str, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    keys("roster", *(folders[n] / f"{n}.pub" for n in names), "--out", path)
    return path


def start(federation: Federation, configs: list[str], *more: tuple[object, ...]) -> Any:
    """Start SuperNodes; return them when the SuperLink has given each an id."""
    found = []
    for number, config in enumerate(configs):
        extra = more[number] if more else ()
        found.append(federation.supernode(number, config, *extra))
    for number in range(len(configs)):
        wait(lambda n=number: ids_of(federation, n), 120)
    return found


def ids_of(federation: Federation, number: int) -> list[str]:
    """Return the ids that a SuperNode has had, by its log."""
    text = (federation.folder / f"node{number}.log").read_text()
    return [x.split()[-1] for x in text.splitlines() if "SuperNode ID" in x]


def config_of(job: dict[str, object]) -> str:
    """Return a job in the form of ``flwr run --run-config``."""
    texts = {k: f'"{v}"' if isinstance(v, (str, Path)) else v for k, v in job.items()}
    return " ".join(f"{key}={value}" for key, value in texts.items())


def finished(folder: Path, done: subprocess.CompletedProcess[str]) -> RunResult:
    assert folder.exists(), done.stdout[-4000:] + done.stderr[-2000:]
    result = RunResult.read(folder)
    assert result.ok, result.reason
    return result


def log_of(folder: Path) -> list[Event]:
    """Return the events of a run so far; none if it has not begun."""
    path = folder / "events.jsonl"
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a line may be being written
    return [json.loads(line) for line in whole.splitlines()]


def of_kind(log: list[Event], kind: str) -> list[Event]:
    return [event for event in log if event["kind"] == kind]


@contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Do something in a thread; yield a function that returns its result."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work).result


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Collect the command lines of all processes of the machine."""
    seen, over = set[bytes](), threading.Event()

    def look() -> None:
        while not over.wait(0.3):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:  # it has ended
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def secrets_of(folder: Path) -> list[bytes]:
    """Return pieces of the secrets in a node's folder, as they might be written."""
    found = [(folder / "identity.key").read_bytes().split()[-1]]
    found.append(bytes.fromhex(found[0].decode()))
    path = folder / "secret.key"
    if path.exists():
        body = path.read_bytes().partition(b"\n")[2]
        middle = body[len(body) // 2 :][:24]
        found += [middle, middle.hex().encode(), base64.b64encode(middle)]
    return found


def test_bfv_between_supernodes_and_strangers_are_refused(federation, tmp_path):
    folders = identities(tmp_path / "keys", "abcde")
    known = roster(folders, "abcd", tmp_path / "roster.txt")
    bfv = ("-c", "secure.scheme=bfv", "-c", "secure.max-cohort=8")
    keys("init", *bfv, "--out", tmp_path / "job")
    keys("init", *bfv, "--out", tmp_path / "other")
    for name, folder in folders.items():
        job_key = tmp_path / ("other" if name == "d" else "job")
        shutil.copy2(job_key / "secret.key", folder)
        # e is in no roster but its own.
        mine = roster(folders, "abcde", tmp_path / "e" / "roster.txt")
        shutil.copy2(mine if name == "e" else known, folder)
        mine.unlink()

    federation.env["TRUSTSTRAM_ROSTER"] = str(known)
    federation.superlink()
    parts = (f"partition-id={i % 3} num-partitions=3" for i in range(5))
    nodes = zip(parts, folders.values(), strict=True)
    start(federation, [f'{part} secure-keys="{path}"' for part, path in nodes])
    usual = {**JOB, "train.rounds": 3}
    job = {**usual, "secure.scheme": "bfv", "secure.max-cohort": 8}
    job |= {"round.min-nodes": 5, "run.dir": tmp_path / "runs", "run.id": "bfv"}
    with command_lines() as commands:
        done = federation.submit(config_of(job))

    result = finished(tmp_path / "runs" / "bfv", done)
    for row in result.rounds:
        assert (row.cohort, row.replies) == (5, 3)
        assert row.codes == {"key": 1, "unknown-key": 1}
    log = log_of(result.dir)
    assert [e["clients"] for e in of_kind(log, "secure-sum")] == [3, 3, 3]
    details = {e["node"]: e["detail"] for e in of_kind(log, "reply-dropped")}
    assert "another key" in details[ids_of(federation, 3)[0]]
    assert "the roster does not have that key" in details[ids_of(federation, 4)[0]]

    run_local(Job.of({**usual, "run.dir": str(tmp_path / "p")}), 3)
    [plain] = (tmp_path / "p").iterdir()
    accuracy = RunResult.read(plain).metrics["accuracy"]
    assert accuracy > 0.9
    assert abs(result.metrics["accuracy"] - accuracy) < 0.05

    private = (tmp_path / "keys", tmp_path / "job", tmp_path / "other")
    written = [
        path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and not any(path.is_relative_to(p) for p in private)
    ]
    text = b"\0".join([*written, *commands])
    assert str(folders["a"]).encode() in b"\0".join(commands)
    assert b"secure-sum" in text
    for folder in folders.values():
        for secret in secrets_of(folder):
            assert secret not in text


def test_secagg_bears_a_supernode_that_dies_in_training_and_takes_it_back(
    federation, tmp_path
):
    folders = identities(tmp_path / "keys", "abcd")
    known = roster(folders, "abcd", tmp_path / "roster.txt")
    for folder in folders.values():
        shutil.copy2(known, folder)
    federation.env["TRUSTSTRAM_ROSTER"] = str(known)
    federation.superlink()
    configs = [
        f'partition-id={i} num-partitions=4 secure-keys="{folder}"'
        for i, folder in enumerate(folders.values())
    ]
    nodes = start(federation, configs)
    job = {**JOB, "train.rounds": 2, "secure.scheme": "secagg", "round.deadline": 150}
    job |= {"round.min-nodes": 3, "run.dir": tmp_path / "runs", "run.id": "masked"}
    folder = tmp_path / "runs" / "masked"

    def shared() -> bool:
        stages = of_kind(log_of(folder), "secure-stage")
        return any(e["stage"] == "shares" for e in stages)

    with meanwhile(lambda: federation.submit(config_of(job))) as outcome:
        wait(shared, 240)
        os.killpg(nodes[3].pid, signal.SIGKILL)  # its masks are in the others' updates
        nodes[3].wait(10)
        federation.supernode(3, configs[3])
        done = outcome()
    result, log = finished(folder, done), log_of(folder)
    dead, again = ids_of(federation, 3)
    assert dead != again  # without Flower's authentication
    assert [e["clients"] for e in of_kind(log, "secure-sum")] == [3, 4]
    cohorts = [e["cohort"] for e in of_kind(log, "round-started")]
    assert [dead in cohort for cohort in cohorts] == [True, False]
    assert [again in cohort for cohort in cohorts] == [False, True]
    assert not of_kind(log, "secure-refused")
    assert {e["node"] for e in of_kind(log, "reply-dropped")} <= {dead}
    assert result.metrics["accuracy"] > 0.5
    # The secrets of a round are gone with it, the crashed node's too.
    assert not list(tmp_path.glob("keys/*/secagg.state*"))


class Authenticated(Federation):
    """With TLS, and SuperNodes that the SuperLink knows by their keys."""

    def __init__(self, folder: Path, repo: Path) -> None:
        super().__init__(folder, repo)
        crt, key = folder / "link.crt", folder / "link.key"
        certify(crt, key)
        self.link_security = (
            *("--enable-supernode-auth", "--ssl-ca-certfile", crt),
            *("--ssl-certfile", crt, "--ssl-keyfile", key),
        )
        self.node_security = ("--root-certificates", crt)
        self.user_security = f'root-certificates = "{crt}"'

    def is_healthy(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def register(self, number: int) -> tuple[str, Path]:
        """Make the key of a SuperNode, known to the SuperLink; return how it starts."""
        key = ec.generate_private_key(ec.SECP384R1())
        path = self.folder / f"node{number}.key"
        path.write_bytes(
            key.private_bytes(
                form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
            )
        )
        public = path.with_suffix(".pub")
        openssh = (form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
        public.write_bytes(key.public_key().public_bytes(*openssh))
        done = self.flwr("supernode", "register", public, "here")
        assert done.returncode == 0, done.stdout + done.stderr
        return "--auth-supernode-private-key", path


def certify(crt: Path, key: Path) -> None:
    """Make a certificate of 127.0.0.1, signed by itself."""
    made, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(made, hashes.SHA256())
    )
    crt.write_bytes(certificate.public_bytes(form.Encoding.PEM))
    key.write_bytes(
        made.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
    )


@pytest.fixture
def authenticated(tmp_path: Path, root: Path) -> Iterator[Authenticated]:
    found = Authenticated(tmp_path, root)
    yield found
    found.close()


def residual(state: Path, node: str) -> tuple[int, np.ndarray]:
    """Return the latest round that a node has remembered, and what it left out."""
    [job] = (state / node).iterdir()
    store = FolderStore(state, node, job.name)
    entries = [store.load(name) for name in ("uplink-0", "uplink-1")]
    last = max((e for e in entries if e), key=lambda e: e.about["round"])
    return last.about["round"], np.frombuffer(last.parts[0], np.float32)


def test_a_residual_survives_the_restart_of_its_supernode(authenticated, tmp_path):
    authenticated.superlink()
    logins = [authenticated.register(number) for number in range(2)]
    states = [tmp_path / f"state{number}" for number in range(2)]
    configs = [
        f'partition-id={i} num-partitions=2 state-path="{state}"'
        for i, state in enumerate(states)
    ]
    nodes = start(authenticated, configs, *logins)
    job = {**JOB, "train.rounds": 4, "round.min-nodes": 2, "round.deadline": 60}
    job |= {"compression.codec": "topk-q8", "compression.downlink": "topk-q8"}
    job |= {"run.dir": tmp_path / "runs", "run.id": "small"}
    folder = tmp_path / "runs" / "small"
    with meanwhile(lambda: authenticated.submit(config_of(job))) as outcome:
        wait(lambda: of_kind(log_of(folder), "round-finished"), 240)
        os.killpg(nodes[0].pid, signal.SIGTERM)
        nodes[0].wait(30)
        [name] = ids_of(authenticated, 0)
        first, before = residual(states[0], name)
        authenticated.supernode(0, configs[0], *logins[0])
        done = outcome()
    result, log = finished(folder, done), log_of(folder)
    assert ids_of(authenticated, 0) == [name, name]  # the key is the node
    assert first in (1, 2)
    assert np.count_nonzero(before) > 1000
    assert residual(states[0], name)[0] == 4
    # Nobody has begun anew: the round after the restart added what was left before it.
    assert not of_kind(log, "residual-lost")
    assert [row.replies for row in result.rounds[2:]] == [2, 2]
    assert result.metrics["accuracy"] > 0.5
    raw = 2 * result.model_bytes
    for row in result.rounds[2:]:
        assert row.bytes_up < 0.2 * raw
        assert row.bytes_down < 0.25 * raw
