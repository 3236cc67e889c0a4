"""Environments of projects on a real node: made from locks, held to them, kept for open tasks, made at first use."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually

from singularity_agents import Client, SingularityError
from singularity_agents._environments import uv_program
from singularity_agents._interpreters import present
from singularity_agents._local_node import LocalNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NODE = (
    '[providers.echo]\ndialect = "echo"\n[agent_execution]\nframework_fallback = false\n'
    '[workers]\nauto_install = {auto}\ninstall_timeout = "{limit}"\n'
)
AGENT = '[agents.{name}]\nframework = "custom:own"\nproject = "{project}"\nentrypoint = "e2e_environments:{name}"\n{more}'
STAMP = "singularity-lock.sha256"


class Place:
    """Environments, wheels and a project of one's own."""

    def __init__(self, folder: Path) -> None:
        self.environments = folder / "envs"
        self.wheels = folder / "wheels"
        self.project = folder / "project"
        self.config = folder / "node.toml"
        for made in (self.wheels, self.project):
            made.mkdir()
        shutil.copy(HERE / "e2e_environments.py", self.project)
        self.variables = {"SINGULARITY_ENVS": str(self.environments), "UV_FIND_LINKS": str(self.wheels)}

    def wheel(self, version: str) -> str:
        """Publishes a version of the package; its line of a lock."""
        name = f"greetings_of_tests-{version}"
        file = self.wheels / f"{name}-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr("greetings_of_tests.py", f'VERSION = "{version}"\n')
            wheel.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: greetings-of-tests\nVersion: {version}\n")
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}.dist-info/RECORD", "")
        return f"greetings-of-tests=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"

    def lock(self, text: str) -> None:
        """The project's lock."""
        (self.project / "singularity.lock").write_text(text)

    def folder(self) -> Path:
        """Where the environment of the project's lock lies."""
        locks = (ROOT / "python_workers" / "locks" / "custom.txt", self.project / "singularity.lock")
        digest = hashlib.sha256(b"\n".join(lock.read_bytes() for lock in locks)).hexdigest()
        return self.environments / f"custom-{digest[:12]}"

    def write(self, *agents: str, more: str = "", auto: bool = False, limit: str = "5m") -> str:
        """The configuration."""
        text = NODE.format(auto=str(auto).lower(), limit=limit)
        text += "".join(AGENT.format(name=name, project=self.project, more=more) for name in agents)
        self.config.write_text(text)
        return text

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command about environments."""
        command = [sys.executable, "-m", "singularity_agents.cli", "frameworks", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **self.variables})

    def install(self, *names: str) -> subprocess.CompletedProcess[str]:
        """`frameworks install` of the configuration's agents."""
        return self.cli("install", *names, "--config", str(self.config))

    @contextlib.contextmanager
    def node(self, text: str) -> Iterator[LocalNode]:
        """A node on these environments."""
        with LocalNode(text, environment=self.variables) as node:
            yield node

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While the build of the project's environment cannot go on."""
        self.environments.mkdir(exist_ok=True)
        with (self.environments / f".{self.folder().name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.lock(place.wheel("1.2"))
    return place


def ends(client: Client, agent: str) -> tuple[str, str]:
    """Reason and words with which a task is refused or fails."""
    try:
        task = client.submit("x", agent=agent, max_attempts=1).wait("60s")
    except SingularityError as error:
        return error.reason, error.message
    assert task.error is not None, task.result
    return task.error.reason, task.error.message


def builders(place: Place) -> list[int]:
    """Installers of these environments that run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"singularity_agents._environments" in words and str(place.environments).encode() in words and b"-m" in words[:4]:
                found.append(int(process.name))
    return found


def test_a_project_runs_on_its_own_lock_and_is_held_to_it(place: Place) -> None:
    """Missing, installed, of another version, of another lock."""
    text = place.write("says_version")
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "singularity frameworks install says_version" in message, message
    done = place.install("says_version")
    assert done.returncode == 0, done.stderr
    folder = place.folder()
    digest = (folder / STAMP).read_text().strip()
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="says_version")
        task = handle.wait("60s")
        assert task.result is not None and task.result.output == "1.2", task.error
        assert [a.environment_lock_hash for a in client.attempts(handle.id)] == [digest]
        assert task.environment_lock_hashes == [digest]
        [own] = client.frameworks.get("custom").environments
        assert (own.name, own.state, own.lock_hash, own.agent_ids) == (folder.name, "READY", digest, ["says_version"])
    # Another version of a package than the lock's.
    packages = next(folder.glob("lib/python3.*/site-packages"))
    there = packages / "greetings_of_tests-1.2.dist-info"
    metadata = (there / "METADATA").read_text()
    # The file is a link into uv's cache, which must stay as it is.
    (there / "METADATA").unlink()
    (there / "METADATA").write_text(metadata.replace("1.2", "1.1"))
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE", message
        assert "greetings-of-tests 1.1 is installed" in message and "the lock says 1.2" in message, message
        assert message.endswith("singularity frameworks install says_version --force")
        # It is refused before it runs from then on.
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "greetings-of-tests 1.1" in message, message
        assert "greetings-of-tests 1.1" in client.frameworks.get("custom").environments[0].unavailable_reason
    # What the message says mends it.
    assert place.install("says_version", "--force").returncode == 0
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        assert client.execute("x", agent="says_version").output == "1.2"
    # Another lock.
    (folder / STAMP).write_text("0" * 64 + "\n")
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "made from another lock (000000000000)" in message and digest[:12] in message


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        ("greetings-of-tests\n", 'singularity.lock:1: "greetings-of-tests" is no package with one version'),
        ("greetings-of-tests==1.2\n", "singularity.lock:1: greetings-of-tests==1.2 has no --hash"),
        ("protobuf==6.33.6 --hash=sha256:" + "0" * 64, "protobuf 6.33.6 (the lock of custom has 7."),
        ("greetings-of-tests==1.2 --hash=sha256:" + "0" * 64, "Hash mismatch for `greetings-of-tests==1.2`"),
        ("greetings-of-tests==9.9 --hash=sha256:" + "0" * 64, "greetings-of-tests==9.9"),
    ],
)
def test_a_lock_that_is_none_is_refused_by_its_line(place: Place, lock: str, said: str) -> None:
    place.lock(lock)
    place.write("says_version")
    done = place.install("says_version")
    assert done.returncode == 4 and said in done.stderr, done.stderr
    assert not (place.folder() / STAMP).exists()


def test_a_project_with_requirements_is_locked_beside_its_framework(place: Place) -> None:
    """`pyproject.toml` names what it wants; `frameworks lock` finds versions that fit."""
    (place.project / "singularity.lock").unlink()
    place.wheel("2.0")
    (place.project / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\ndependencies = ["greetings-of-tests<2", "protobuf"]\n'
    )
    text = place.write("says_version", more='requirements = "pyproject.toml"\n')
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "singularity frameworks lock says_version" in message, message
    done = place.cli("lock", "says_version", "--config", str(place.config))
    assert done.returncode == 0, done.stderr
    lock = (place.project / "singularity.lock").read_text()
    assert "greetings-of-tests==1.2" in lock and "protobuf==7." in lock and "--hash=sha256:" in lock
    assert place.install("says_version").returncode == 0
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        assert client.execute("x", agent="says_version").output == "1.2"


@contextlib.contextmanager
def index(place: Place) -> Iterator[str]:
    """The wheels as an index, which unlike a folder says their hashes."""
    page = place.wheels / "simple" / "greetings-of-tests"
    page.mkdir(parents=True)
    links = [
        f'<a href="/{w.name}#sha256={hashlib.sha256(w.read_bytes()).hexdigest()}">{w.name}</a>'
        for w in place.wheels.glob("*.whl")
    ]
    (page / "index.html").write_text("\n".join(links))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place.wheels))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/simple"
        finally:
            server.shutdown()


def test_the_lock_that_uv_keeps_is_a_lock(place: Place) -> None:
    """`uv.lock` beside a `pyproject.toml`; the project itself is the code that is there, and is not installed."""
    (place.project / "singularity.lock").unlink()
    (place.project / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["greetings-of-tests"]\n'
    )
    uv = uv_program(ROOT / "_build" / "venvs")
    assert uv is not None
    with index(place) as url:
        command = [uv, "lock", "-q", "--project", str(place.project), "--python", sys.executable, "--index", url]
        subprocess.run(command, check=True, timeout=120)
    text = place.write("says_version")
    done = place.install("says_version")
    assert done.returncode == 0, done.stderr
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        assert client.execute("x", agent="says_version").output == "1.2"
        [own] = client.frameworks.get("custom").environments
        assert own.lock_hash[:12] in own.name


def test_an_open_task_goes_on_in_its_environment_which_is_kept_for_it(place: Place) -> None:
    text = place.write("asks_first")
    assert place.install("asks_first").returncode == 0
    old = place.folder()
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        handle = client.submit("x", agent="asks_first")
        eventually(lambda: client.get(handle.id).pending_inputs)
        # The project moves on while the task waits.
        place.lock(place.wheel("1.3"))
        assert place.install("asks_first").returncode == 0 and place.folder() != old

        def collected() -> dict[str, str]:
            done = place.cli("gc", "--address", node.address, "-o", "json")
            assert done.returncode == 0, done.stderr
            return {row["environment"]: row["state"] for row in json.loads(done.stdout)["environments"]}

        # What runs from an environment keeps it, and so does a task that has begun in one of its locks.
        copy = place.environments / "custom-000000000000"
        copy.mkdir()
        shutil.copy(old / STAMP, copy)
        shutil.copy(old / "pyvenv.cfg", copy)
        states = collected()
        assert "in use" in states[old.name] and states[copy.name] == f"needed by the open task {handle.id}", states
        # A task that comes now has the new one.
        other = client.submit("x", agent="asks_first")
        eventually(lambda: client.get(other.id).pending_inputs)
        assert client.get(other.id).environment_lock_hashes == [(place.folder() / STAMP).read_text().strip()]
        client.signal(handle.id, input="yes")
        task = handle.wait("60s")
        assert task.result is not None and task.result.output == "yes with 1.2", task.error
        assert collected()[copy.name] == "deleted" and not copy.exists()


def log_of(client: Client, task_id: str) -> list[str]:
    """Lines of the engine about environments among a task's events."""
    return [str(e.data["message"]) for e in client.watch(task_id) if e.kind == "log" and e.data.get("source") == "environment"]


def test_a_missing_environment_is_made_at_first_use_once(place: Place) -> None:
    text = place.write("says_version", auto=True)
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        with place.held():
            handles = [client.submit("x", agent="says_version") for _ in range(3)]

            def installing() -> Any:
                [own] = client.frameworks.get("custom").environments
                return own if own.state == "INSTALLING" and "another installer" in own.progress else None

            own = eventually(installing)
            assert own.agent_ids == ["says_version"] and own.name == place.folder().name
            assert len(builders(place)) == 1
            assert {client.get(h.id).state for h in handles} == {"RUNNING"}
        for handle in handles:
            task = handle.wait("120s")
            assert task.result is not None and task.result.output == "1.2", task.error
            assert log_of(client, handle.id) == [f"waits for the Python environment {place.folder().name}, which is being made"]
        assert client.frameworks.get("custom").environments[0].state == "READY"
    eventually(lambda: not builders(place))


def test_a_framework_that_is_named_is_made_at_first_use(place: Place) -> None:
    """From its own lock, without an agent of the configuration; then it is held to it."""
    with place.node(place.write("says_version", auto=True)) as node, Client(node.address, max_retries=0) as client:
        assert client.frameworks.get("autogen").state == "UNAVAILABLE"
        handle = client.submit("hello", framework="autogen")
        task = handle.wait("180s")
        assert task.result is not None and task.result.executor == "autogen", task.error
        assert log_of(client, handle.id) == ["waits for the Python environment autogen, which is being made"]
        lock = hashlib.sha256((ROOT / "python_workers" / "locks" / "autogen.txt").read_bytes()).hexdigest()
        framework = client.frameworks.get("autogen")
        assert (framework.state, framework.lock_hash) == ("READY", lock)


def test_a_framework_that_is_kept_warm_is_made_with_the_node(place: Place) -> None:
    text = place.write("says_version", auto=True).replace("[workers]\n", '[workers]\nwarm_frameworks = ["custom"]\n')
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        eventually(lambda: client.frameworks.get("custom").state == "READY", 60.0)


def test_a_task_that_waits_for_its_environment_is_cancelled_at_once(place: Place) -> None:
    text = place.write("says_version", auto=True)
    with place.node(text) as node, Client(node.address, max_retries=0) as client, place.held():
        handle = client.submit("x", agent="says_version")
        eventually(lambda: builders(place))
        assert client.cancel(handle.id).task.state == "CANCELLED"


def test_a_build_that_fails_is_a_typed_refusal(place: Place) -> None:
    place.lock("greetings-of-tests==1.2 --hash=sha256:" + "0" * 64)
    text = place.write("says_version", auto=True)
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "Hash mismatch" in message, message
        assert "singularity frameworks install says_version" in message
        # The next task is told at once, and begins no other build.
        reason, again = ends(client, "says_version")
        assert (reason, builders(place)) == ("FRAMEWORK_UNAVAILABLE", []) and "Hash mismatch" in again
        [own] = client.frameworks.get("custom").environments
        assert own.state == "UNAVAILABLE" and "Hash mismatch" in own.unavailable_reason


def test_a_build_takes_no_longer_than_it_may(place: Place) -> None:
    text = place.write("says_version", auto=True, limit="1s")
    with place.node(text) as node, Client(node.address, max_retries=0) as client, place.held():
        reason, message = ends(client, "says_version")
        assert reason == "FRAMEWORK_UNAVAILABLE" and "install_timeout" in message, message
        eventually(lambda: not builders(place))


def test_a_build_ends_with_its_node(place: Place) -> None:
    text = place.write("says_version", auto=True)
    with place.node(text) as node, Client(node.address, max_retries=0) as client, place.held():
        client.submit("x", agent="says_version")
        eventually(lambda: builders(place))
        os.kill(beam_of(node), signal.SIGKILL)
        eventually(lambda: not builders(place), 5.0)


def beam_of(node: LocalNode) -> int:
    """The node's virtual machine."""
    return next(
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if p.joinpath("cmdline").exists()
        and b"beam.smp" in (words := p.joinpath("cmdline").read_bytes())
        and str(node.log.parent).encode() in words
    )


def test_nothing_is_made_for_a_task_that_names_no_framework(place: Place) -> None:
    with place.node(place.write("says_version", auto=True)) as node, Client(node.address, max_retries=0) as client:
        route = client.check("hello")
        assert route.executor == "native"
        refused = {c.executor: c.refused for c in route.candidates}
        assert "is not installed" in refused["langchain"]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_an_agent_runs_on_the_python_that_it_names(place: Place, version: str) -> None:
    if version not in present():
        pytest.skip(f"this machine has no Python {version}")
    text = place.write("says_python", more=f'python = "{version}"\n')
    assert place.install("says_python").returncode == 0
    assert place.folder().with_name(place.folder().name + f"-py{version}").is_dir()
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        assert client.execute("x", agent="says_python").output == version


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_a_framework_runs_on_the_python_that_the_configuration_names(place: Place, version: str) -> None:
    """Made at first use, beside the one of another version."""
    if version not in present():
        pytest.skip(f"this machine has no Python {version}")
    text = place.write("says_python", auto=True) + f'[frameworks]\nautogen = {{ python = "{version}" }}\n'
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        task = client.submit("hello", framework="autogen").wait("180s")
        assert task.result is not None and task.result.executor == "autogen", task.error
    home = (place.environments / f"autogen-py{version}" / "pyvenv.cfg").read_text()
    assert f"version_info = {version}" in home or f"version = {version}" in home


def test_a_python_that_is_not_there_is_named_with_those_that_are(place: Place) -> None:
    missing = "3.13"
    place.variables |= {"PATH": "/usr/bin:/bin", "PYENV_ROOT": "/nonexistent", "SINGULARITY_USER_HOME": "/nonexistent"}
    place.variables |= {"XDG_DATA_HOME": "/nonexistent", "UV_CACHE_DIR": str(place.wheels.parent / "cache")}
    text = place.write("says_python", more=f'python = "{missing}"\n', auto=True)
    with place.node(text) as node, Client(node.address, max_retries=0) as client:
        reason, message = ends(client, "says_python")
        assert reason == "FRAMEWORK_UNAVAILABLE" and f"there is no Python {missing} on this machine; there is 3.11" in message, (
            message
        )
