"""The HTTP door beside nginx and beside nothing, in one run: `make bench` prints its rows.

The upstream answers at once, so that what is left is what stands between. nginx, from Debian's package and not installed, is the floor:
figures are fractions of it. Its one worker and our node have the same cores as the client and the upstream.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from singularity_agents._local_node import LocalNode, free_port

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "_build" / "rust" / "release" / "agent_bench"
NGINX = ROOT / "_build" / "nginx"
#: Even: every second round goes the other way.
RUNS = 4
SECONDS = "2"

PROXY = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 10000000; tcp_nodelay on;
    upstream it {{ server {upstream}; keepalive 128; keepalive_requests 10000000; }}
    server {{ listen {address}; location / {{
        proxy_pass http://it; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }} }}
}}
"""


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """The address of a provider that answers at once."""
    with subprocess.Popen([str(TOOL), "upstream"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextlib.contextmanager
def nginx(before: str, folder: Path) -> Iterator[str | None]:
    """The address of nginx before an upstream; None: there is none here."""
    program = NGINX / "usr" / "sbin" / "nginx"
    if not program.exists():
        yield None
        return
    address = f"127.0.0.1:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nginx.conf"
    config.write_text(PROXY.format(folder=folder, upstream=before, address=address))
    process = subprocess.Popen([str(program), "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        yield address if answers(address, process) else None
    finally:
        process.terminate()
        process.wait(10)


def door(before: str) -> str:
    """The configuration of a node before that upstream, with prices and a budget: the alias `door` is metered as any other."""
    return f"""
[providers.up]
dialect = "openai"
base_url = "http://{before}/v1"
models = ["m"]
[models.door]
endpoints = [{{ provider = "up", name = "m" }}]
prices = [{{ valid_from = "2026-01-01", input = "1.00", output = "2.00" }}]
[tenants.default]
budget = {{ total_usd = "1000000" }}
"""


def answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Waits until something listens there; False: the program has ended."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return True
    return False


def load(address: str, *options: str, model: str = "m") -> dict[str, Any]:
    """One run; every answer is compared with what was sent."""
    done = subprocess.run(
        [str(TOOL), "http", "--address", address, "--model", model, "--seconds", SECONDS, *options],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer["wrong"]:
        raise RuntimeError(f"{answer['wrong']} answers were lost, reordered or altered")
    return answer


def turns(places: dict[str, str], *options: str) -> dict[str, dict[str, float]]:
    """Medians of several runs of each place, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    for number in range(RUNS):
        for name, address in list(places.items())[:: 1 if number % 2 == 0 else -1]:
            runs[name].append(load(address, *options, model="door" if name == "door" else "m"))
    keys = ("per_second", "p50_us", "p99_us", "first_p50_us", "first_p99_us")
    return {name: {key: statistics.median(run[key] for run in all_) for key in keys} for name, all_ in runs.items()}


def select(record: Any) -> None:
    """A choice among 50 endpoints."""
    done = subprocess.run(
        [str(TOOL), "provider_select", "--models", "50", "--calls", "20000"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    record(
        "provider_select",
        json.loads(done.stdout)["provider_select"]["p50_us"],
        "us",
        wanted="of 50 endpoints, median: must 20, aim 5",
    )


def measure(record: Any, out: Path) -> None:
    """All rows, given to `record` of bench.py."""
    select(record)
    with upstream() as address, nginx(address, out / "nginx") as floor, LocalNode(door(address)) as node:
        places = {"direct": address, "door": node.http_address, **({"nginx": floor} if floor else {})}
        load(node.http_address, model="door")
        if floor is None:
            print("nginx is not to be had here: the rows of the door have no baseline")
        one = turns(places, "--in-flight", "1")
        for key, wanted in (("p50_us", "must 0.15 ms, aim 0.10"), ("p99_us", "must 0.30 ms, aim 0.20")):
            added = {name: (row[key] - one["direct"][key]) / 1000 for name, row in one.items()}
            record(
                f"provider_added_latency_{key[:3]}",
                added["door"],
                "ms",
                baseline=added.get("nginx"),
                wanted=f"{wanted}; baseline: nginx",
            )
        many = turns(places, "--in-flight", "32")
        record("provider_throughput", many["door"]["per_second"], "/s", baseline=many.get("nginx", {}).get("per_second"),
               wanted="32 in flight: must 0.2 of nginx, aim 0.4")  # fmt: skip
        streams = turns(places, "--in-flight", "32", "--events", "20")
        record("provider_stream", streams["door"]["per_second"], "/s", baseline=streams.get("nginx", {}).get("per_second"),
               wanted="20 chunks, 32 at once: must 0.3 of nginx, aim 0.6")  # fmt: skip
        first = turns(places, "--in-flight", "1", "--events", "20")
        added = (first["door"]["first_p99_us"] - first["direct"]["first_p99_us"]) / 1000
        record("provider_first_chunk", added, "ms", wanted="added, p99: must 0.5 ms")
        long = turns({"door": node.http_address}, "--in-flight", "64", "--events", "200")
        record("provider_long_streams", long["door"]["per_second"], "/s", wanted="200 events, 64 at once, text compared: 0 wrong")
