"""What is shipped: the wheel (one name, the app inside) and the FAB (the app only)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

APP = ("server_app", "client_app", "strategies", "tff_bridge", "truststram")
ENV = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def run(command, cwd, env=ENV, timeout=300):
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={k: v for k, v in env.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sources(root: Path, folder: str) -> set[str]:
    """Python files of a folder, as git would see them."""
    files = (root / folder).rglob("*.py")
    return {str(f.relative_to(root)) for f in files if "__pycache__" not in f.parts}


@pytest.fixture(scope="module")
def repo() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, repo):
    out = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", out, repo],
        out,
    )
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory, wheel):
    """A Python with the wheel and all dependencies, but without this repository."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install"]
    run([*command, "--quiet", "--no-deps", "--no-index", wheel], folder)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    # A path in a .pth file is not searched for .pth files: the editable install of
    # this repository stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def foreign_app(tmp_path):
    """A folder with modules of the names that our app has."""
    for name in ("strategies", "server_app", "client_app"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    return tmp_path


def fab_files(app: Path, out: Path) -> set[str]:
    flwr = Path(sys.executable).parent / "flwr"
    run([flwr, "build", "--app", app], out, {**ENV, "FLWR_HOME": str(out / "home")})
    [fab] = out.glob("*.fab")
    with zipfile.ZipFile(fab) as archive:
        return set(archive.namelist())


def test_the_wheel_installs_one_name_and_carries_the_app(wheel, repo):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"truststram"}
    for folder in APP:
        inside = {f"truststram/_app/{name}" for name in sources(repo, folder)}
        assert inside <= names
    assert sources(repo, "truststram") <= names
    assert "truststram/py.typed" in names
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        assert f"truststram/_app/{name}" in names
    assert not {n for n in names if "tests/" in n or "benchmarks/" in n}


def test_the_fab_holds_the_app_and_nothing_else(clean_python, repo, tmp_path):
    """Built from the repository, and from the app inside the installed wheel."""
    expected = set().union(*(sources(repo, folder) for folder in APP))
    expected |= {"pyproject.toml", "LICENSE", "README.md", ".info/CONTENT"}
    code = "from truststram._locate import app_dir; print(app_dir())"
    app = Path(run([clean_python, "-c", code], tmp_path).strip())
    assert app.name == "_app"
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    # Flower refuses "_app" as an app's name; the runner copies the folder too.
    shutil.copytree(app, tmp_path / "app")
    packed = fab_files(tmp_path / "app", tmp_path / "ours")
    assert packed == expected
    # Flower reads every file below the folder: gigabytes, with .venv.
    hidden = shutil.ignore_patterns(".*", "__pycache__", "runs")
    copy = shutil.copytree(repo, tmp_path / "repo", ignore=hidden)
    other = copy / ".venv" / "lib" / "truststram" / "other.py"
    other.parent.mkdir(parents=True)
    other.touch()
    assert fab_files(copy, tmp_path / "theirs") == expected


def test_the_sdk_imports_alone_and_cheaply(clean_python, tmp_path):
    code = """
import sys, truststram
assert not {"torch", "flwr", "numpy"} & set(sys.modules), "the import is not cheap"
assert truststram.Job().train.rounds == 20
for name in ("strategies", "server_app", "client_app"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(name + " is importable")
"""
    run([clean_python, "-c", code], tmp_path)


def test_techniques_work_inside_an_app_with_its_own_strategies(
    clean_python, foreign_app
):
    code = """
import strategies, server_app
assert strategies.MINE and server_app.MINE
from truststram.techniques import Guard, WeightedMean, StrategyLayer, delta_mod
assert Guard.__module__ == "truststram._app.strategies.guard.layer"
assert issubclass(Guard, StrategyLayer) and issubclass(WeightedMean, StrategyLayer)
import sys
copies = [m for m in sys.modules if m.endswith("strategies.base")]
assert copies == ["truststram._app.strategies.base"], copies
import truststram
result = truststram.run({"train.rounds": 1, "train.local-epochs": 1}, nodes=2)
assert result.ok and result.rounds[0].replies == 2
assert strategies.MINE and sys.modules["strategies"] is strategies
"""
    run([clean_python, "-c", code], foreign_app)


def test_from_the_repository_too(repo, foreign_app):
    """An editable install, used in a folder that has its own `strategies`."""
    code = f"""
import sys
sys.path.insert(1, {str(repo)!r})
import strategies
assert strategies.MINE
from truststram.techniques import Guard, StrategyLayer, stack
assert issubclass(Guard, StrategyLayer)
assert stack.build.__module__.startswith("truststram._beside_strategies")
from truststram._locate import app_module
assert app_module("server_app.main").app is app_module("server_app.main").app
"""
    run([sys.executable, "-c", code], foreign_app)


def test_the_command_works_outside_the_repository(clean_python, tmp_path):
    command = clean_python.parent / "truststram"
    assert "digits" in run([command, "tasks"], tmp_path)
    assert "train.local-epochs" in run([command, "config"], tmp_path)


@pytest.mark.slow
def test_a_flower_run_from_the_wheel(clean_python, foreign_app):
    command = [clean_python.parent / "truststram", "run", "--engine", "flower"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run(
        [*command, "--nodes", "2", "-c", "train.rounds=1"],
        foreign_app,
        {**ENV, "PATH": path},
    )
    assert len(list((foreign_app / "runs").glob("*/model.safetensors"))) == 1
