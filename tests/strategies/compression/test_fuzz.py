"""A minute of fuzzing finds nothing but ProtocolError; a planted mistake is found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="atheris is for Linux only"),
]
MODULE = "tests.strategies.compression.fuzz_frames"


def fuzz(folder, root, seconds, *more):
    corpus = folder / "corpus"
    corpus.mkdir()
    options = [f"-max_total_time={seconds}", "-max_len=2048", "-rss_limit_mb=2048"]
    options += ["-timeout=10", f"-artifact_prefix={folder}/", "-seed=1"]
    return subprocess.run(
        [sys.executable, "-m", MODULE, *more, str(corpus), *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + 120,
    )


def test_a_minute_of_fuzzing_finds_nothing(tmp_path, root):
    done = fuzz(tmp_path, root, 60)
    assert done.returncode == 0, done.stdout[-3000:]
    runs = int(re.search(r"Done (\d+) runs", done.stdout)[1])
    assert runs > 10_000
    assert not [p for p in tmp_path.iterdir() if p.name != "corpus"]


def test_a_planted_mistake_is_found(tmp_path, root):
    done = fuzz(tmp_path, root, 60, "--plant")
    assert done.returncode != 0
    assert "Uncaught Python exception" in done.stdout
