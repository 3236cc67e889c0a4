"""A node of one's own: found, started, waited for and stopped. For `singularity up`, `run` and the test kit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from typing_extensions import Self

from ._errors import ConnectionFailed, WrongState
from ._transport import Target

#: Seconds in which a node must serve; the first one may have to read a model.
START_TIMEOUT = 120.0
#: Seconds in which a node must have drained and ended.
STOP_TIMEOUT = 30.0
#: Seconds between two questions whether it serves.
POLL = 0.1

#: Variables that would change the configuration of a node with ports of its own.
OVERRIDES = frozenset({"SINGULARITY_ADDRESS", "SINGULARITY_HTTP_ADDRESS", "SINGULARITY_STORE_URL", "SINGULARITY_MODEL"})

_SERVING = b"\x08\x01"


def program() -> list[str]:
    """Command line that starts a node: SINGULARITYD, the checkout this package lives in, or PATH.

    Raises WrongState saying what is missing.
    """
    if named := os.environ.get("SINGULARITYD"):
        return [named, "foreground"]
    for folder in Path(__file__).resolve().parents:
        if (folder / "scripts" / "start").is_file() and (folder / "rel").is_dir():
            return [str(folder / "scripts" / "start"), "foreground"]
    if found := shutil.which("singularityd"):
        return [found, "foreground"]
    raise WrongState(
        "no node program found: set SINGULARITYD to bin/singularityd of a release, or run from a checkout",
        reason="NODE_NOT_INSTALLED",
    )


def serving(target: Target, timeout: float = 1.0) -> bool:
    """Whether the node at the target says SERVING."""
    credentials = target.tls.credentials() if target.tls else None
    with (
        grpc.secure_channel(target.address, credentials, target.options())
        if credentials
        else grpc.insecure_channel(target.address, target.options())
    ) as channel:
        try:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            answer: bytes = check(b"", timeout=timeout)
        except grpc.RpcError:
            return False
    return answer.startswith(_SERVING)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalNode:
    """A node with ports, data and state of its own, on loopback; it ends with the `with` block.

    `config` is TOML without a `[server]` section, which is added here.
    """

    def __init__(self, config: str, *, environment: dict[str, str] | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        #: Where it speaks HTTP.
        self.http_address = f"127.0.0.1:{free_port()}"
        self._config = config
        self._environment = environment or {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        """What the node wrote."""
        assert self._folder is not None, "the node was not started"
        return Path(self._folder.name) / "node.log"

    def start(self) -> None:
        """Starts it and waits until it serves. Raises ConnectionFailed with the end of its log."""
        command = program()
        self._folder = tempfile.TemporaryDirectory(prefix="singularity-")
        folder = Path(self._folder.name)
        server = f'[server]\naddress = "{self.address}"\nhttp_address = "{self.http_address}"\n'
        (folder / "singularity.toml").write_text(server + self._config)
        # What the caller's shell says of another node is not for this one.
        inherited = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
        environment = {
            **inherited,
            **self._environment,
            "SINGULARITY_CONFIG": str(folder / "singularity.toml"),
            "SINGULARITY_DATA_DIR": str(folder / "data"),
            "SINGULARITY_STATE_DIR": str(folder / "state"),
            "SINGULARITY_DIST_PORT": str(free_port()),
        }
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches us, and we stop the node in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        target, deadline = Target(self.address), time.monotonic() + START_TIMEOUT
        try:
            while not serving(target):
                if self._process.poll() is not None:
                    raise self._failed(f"the node ended with code {self._process.returncode}")
                if time.monotonic() > deadline:
                    raise self._failed(f"the node does not serve after {START_TIMEOUT:.0f} s")
                time.sleep(POLL)
        except BaseException:
            self.stop()
            raise

    def _failed(self, what: str) -> ConnectionFailed:
        tail = "\n  ".join(self.log.read_text(errors="replace").splitlines()[-10:])
        return ConnectionFailed(f"{what}\n  {tail}", reason="NODE_START_FAILED")

    def stop(self) -> None:
        """Drains and ends it; its data goes with it."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                # The start script waits for the node, which has a session of its own; workers notice its end by themselves.
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int((self.log.parent / "state" / "run" / "pid").read_text()), signal.SIGKILL)
                process.kill()
                process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def openai_config(model: str, base_url: str, key_variable: str = "OPENAI_API_KEY") -> str:
    """Configuration of a node whose default model is `model` of an OpenAI-compatible endpoint."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    return (
        f'[providers.openai]\ndialect = "openai"\nbase_url = {quoted(base_url)}\n'
        f"api_key = {{ env = {quoted(key_variable)} }}\nmodels = [{quoted(model)}]\n"
        f'[models.default]\nendpoints = [{{ provider = "openai", name = {quoted(model)}, priority = 1 }}]\n'
    )
