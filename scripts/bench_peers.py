"""Other gateways beside the HTTP door, in one run: `make bench-peers`.

Each stands before the same upstream, which answers at once, and is asked by the same client in turn; nginx is the floor. They come from
PyPI and npm, pinned in `tests/bench/peers`, into `_build/peers`. TensorZero's gateway is a program that neither offers (PyPI has its client
alone), so it is not here. Shown, not gating: `_build/bench/peers.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_providers import ROOT, RUNS, SECONDS, TOOL, answers, door, nginx, upstream

from singularity_agents._local_node import LocalNode, free_port

PINS = ROOT / "tests" / "bench" / "peers"
HOME = ROOT / "_build" / "peers"
OUT = ROOT / "_build" / "bench"
UV = ROOT / "_build" / "venvs" / "uv" / "bin" / "uv"
#: A gateway in Python takes its time to start.
START_WITHIN_S = 120
#: Variables that installers need: where their registries are, and which authorities vouch for them.
HANDED_ON = ("npm_config", "node_extra_ca", "uv_", "pip_", "ssl_")
#: What is measured: options of the client, and the columns of its answer.
MEASURES: dict[str, tuple[str, ...]] = {
    "1 in flight": ("--in-flight", "1"),
    "32 in flight": ("--in-flight", "32"),
    "streams of 20, 32 at once": ("--in-flight", "32", "--events", "20"),
}


def install() -> None:
    """Everything that PyPI and npm have of them, by hash; again only when a pin has changed."""
    stamp = HOME / "stamp"
    pins = "".join((PINS / name).read_text() for name in ("gateways.txt", "package.json", "package-lock.json"))
    if stamp.exists() and stamp.read_text() == pins:
        return
    HOME.mkdir(parents=True, exist_ok=True)
    print("installing LiteLLM, Node.js and Portkey (800 MB, 2 min)", flush=True)
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, HOME / "venv"], check=True, timeout=120)
    lock = ["--require-hashes", "--requirement", PINS / "gateways.txt"]
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", HOME / "venv" / "bin" / "python", *lock], check=True, timeout=900
    )
    for name in ("package.json", "package-lock.json"):
        (HOME / name).write_text((PINS / name).read_text())
    subprocess.run(
        [HOME / "venv" / "bin" / "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        check=True, cwd=HOME, env=environment(), timeout=600, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    stamp.write_text(pins)


def environment() -> dict[str, str]:
    """Their own programs first; no key of ours."""
    return {
        "PATH": f"{HOME / 'venv' / 'bin'}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", str(HOME)), "OPENAI_API_KEY": "any",
        **{name: value for name, value in os.environ.items() if name.lower().startswith(HANDED_ON)},
    }  # fmt: skip


@contextlib.contextmanager
def program(name: str, command: list[str | Path], port: int, **more: str) -> Iterator[str | None]:
    """The address of a gateway once it listens; None where it does not, with the end of its log."""
    log = HOME / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=HOME, env={**environment(), **more}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end = time.monotonic() + START_WITHIN_S
        while process.poll() is None and time.monotonic() < end and not answers(f"127.0.0.1:{port}", process):
            pass
        if process.poll() is None:
            yield f"127.0.0.1:{port}"
        else:
            print(f"{name} did not start: {log.read_text(errors='replace')[-500:]}")
            yield None
    finally:
        # A launcher may have the gateway as its child: the whole group ends.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


@contextlib.contextmanager
def litellm(before: str) -> Iterator[str | None]:
    """LiteLLM's proxy with one worker, without a database."""
    config = HOME / "litellm.json"
    model = {"model": "openai/m", "api_base": f"http://{before}/v1", "api_key": "any"}
    config.write_text(json.dumps({"model_list": [{"model_name": "m", "litellm_params": model}]}))
    port = free_port()
    command: list[str | Path] = [
        HOME / "venv" / "bin" / "litellm",
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with program("litellm", command, port, **LITELLM) as address:
        yield address


@contextlib.contextmanager
def portkey(_before: str) -> Iterator[str | None]:
    """Portkey's gateway; the request says where it goes."""
    port = free_port()
    server = HOME / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command: list[str | Path] = [HOME / "venv" / "bin" / "node", server, "--headless", f"--port={port}"]
    with program("portkey", command, port) as address:
        yield address


#: It starts without a key only where it is told so; it listens on loopback and has no database.
LITELLM = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}

#: A gateway, and what its requests need besides.
PEERS: dict[str, tuple[Callable[[str], contextlib.AbstractContextManager[str | None]], Callable[[str], list[str]]]] = {
    "Portkey": (portkey, lambda before: ["x-portkey-provider: openai", f"x-portkey-custom-host: http://{before}/v1"]),
    "LiteLLM": (litellm, lambda before: []),
}


def load(address: str, headers: list[str], *options: str, model: str = "m") -> dict[str, Any]:
    """One run of the client."""
    extra = [part for header in headers for part in ("--header", header)]
    command = [str(TOOL), "http", "--address", address, "--model", model, "--seconds", SECONDS, *extra, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Medians of every place and measure, in turn."""
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(upstream())
        node = stack.enter_context(LocalNode(door(before)))
        places: dict[str, tuple[str, list[str], str]] = {
            "nothing": (before, [], "m"),
            "this engine": (node.http_address, [], "door"),
        }
        if floor := stack.enter_context(nginx(before, OUT / "nginx")):
            places["nginx"] = (floor, [], "m")
        for name, (start, headers) in PEERS.items():
            if address := stack.enter_context(start(before)):
                places[name] = (address, headers(before), "m")
        for address, headers, model in places.values():
            load(address, headers, model=model)
        found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in places}
        for what, options in MEASURES.items():
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
            for number in range(RUNS):
                for name, (address, headers, model) in list(places.items())[:: 1 if number % 2 == 0 else -1]:
                    runs[name].append(load(address, headers, *options, model=model))
            for name, all_ in runs.items():
                found[name][what] = {
                    key: statistics.median(r[key] for r in all_) for key in ("per_second", "p50_us", "p99_us", "wrong")
                }
        return found


def main() -> int:
    install()
    OUT.mkdir(parents=True, exist_ok=True)
    found = measure()
    (OUT / "peers.json").write_text(
        json.dumps({"command": "make bench-peers", "load": os.getloadavg()[0], "rows": found}, indent=2)
    )
    alone = found["nothing"]["1 in flight"]
    print(f"{'':14}{'added p50':>12}{'added p99':>12}{'32 in flight':>15}{'streams':>12}   wrong answers")
    for name, row in found.items():
        one, many, streams = (row[what] for what in MEASURES)
        added = [f"{(one[key] - alone[key]) / 1000:.2f} ms" for key in ("p50_us", "p99_us")]
        wrong = int(sum(measured["wrong"] for measured in row.values()))
        print(
            f"{name:14}{added[0]:>12}{added[1]:>12}{many['per_second']:>13,.0f}/s{streams['per_second']:>10,.0f}/s   {wrong or ''}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
