"""`doctor` and `report`: named checks, each with what to do, and a bundle of what a maintainer asks for."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from .. import __version__
from .._errors import SingularityError
from .._local_node import program, serving
from ._io import paint
from ._main import OK, TASK_FAILED, Context
from ._node import tool

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser

#: Seconds for a canary model call.
CANARY_TIMEOUT = 60.0
#: Seconds for the guard's look at the machine.
PROBE_TIMEOUT = 10.0


class Finding(BaseModel):
    """Outcome of a check: ok, FAIL, or "-" where it does not apply."""

    check: str
    status: str
    detail: str = ""
    fix: str = ""


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    doctor = commands.add_parser("doctor", parents=[shared], help="named checks of this machine and its node")
    doctor.description = f"example: singularity doctor sandbox\n\nchecks: {', '.join(CHECKS)}"
    doctor.add_argument("checks", nargs="*", metavar="CHECK", help=f"default: all. {', '.join(CHECKS)}")
    doctor.set_defaults(run=examine)
    report = commands.add_parser("report", parents=[shared], help="a bundle for a bug report; no prompts, no keys")
    report.add_argument("--out", default="report.tar.gz", metavar="FILE")
    report.set_defaults(run=bundle)


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, status="ok", detail=detail)


def _fail(check: str, detail: str, fix: str) -> Finding:
    return Finding(check=check, status="FAIL", detail=detail, fix=fix)


def check_python(_: Context) -> Finding:
    """The range of this package."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return _ok("python", version)
    return _fail("python", f"{version} is outside 3.10 to 3.13", "use Python 3.10 to 3.13")


def check_program(_: Context) -> Finding:
    """Whether a node could be started here."""
    try:
        return _ok("program", program()[0])
    except SingularityError as error:
        return _fail("program", error.message, "make release")


def check_node(ctx: Context) -> Finding:
    """Whether the chosen node serves."""
    started = time.monotonic()
    if serving(ctx.target, 3.0):
        return _ok("node", f"{ctx.target.address} serves ({(time.monotonic() - started) * 1000:.0f} ms)")
    return _fail("node", f"nobody serves at {ctx.target.address}", "singularity up")


def check_store(ctx: Context) -> Finding:
    """Whether tasks can be read."""
    started = time.monotonic()
    with ctx.client() as client:
        client.list(limit=1)
    return _ok("store", f"read in {(time.monotonic() - started) * 1000:.1f} ms")


def check_providers(ctx: Context) -> Finding:
    """Whether every provider is ready."""
    with ctx.client() as client:
        providers = client.providers.list()
    bad = [f"{p.name}: {p.state}" for p in providers if not p.state.startswith(("ready", "starting"))]
    if bad:
        return _fail("providers", "; ".join(bad), "singularity providers")
    return _ok("providers", ", ".join(f"{p.name} {p.state}" for p in providers) or "none configured")


def check_model(ctx: Context) -> Finding:
    """A canary: one short answer of the default model."""
    started = time.monotonic()
    with ctx.client() as client:
        answer = client.providers.chat("Say hello.", max_tokens=8)
    return _ok("model", f"{answer.provider}/{answer.model} answered in {time.monotonic() - started:.1f} s")


def check_frameworks(ctx: Context) -> Finding:
    """Which frameworks take tasks."""
    with ctx.client() as client:
        frameworks = client.frameworks.list()
    bad = [f"{f.name}: {f.unavailable_reason}" for f in frameworks if f.state == "UNAVAILABLE"]
    good = [f"{f.name} {f.state}" for f in frameworks if f.state != "UNAVAILABLE"]
    if bad and not good:
        return _fail("frameworks", "; ".join(bad), "singularity frameworks install")
    # Those that nobody installed, or that are switched off, are missing on purpose: they are told, and are no fault.
    return _ok("frameworks", "; ".join([", ".join(good) or "none", *bad]))


def check_sandbox(_: Context) -> Finding:
    """Which isolation layers the guard finds on this machine."""
    try:
        guard = tool("port_guard")
    except SingularityError as error:
        return _fail("sandbox", error.message, "make release")
    done = subprocess.run([guard, "probe"], capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False)
    layers = dict(re.findall(r"^(\w+)=(.*)$", done.stdout, re.MULTILINE))
    if done.returncode != 0 or not layers:
        return _fail("sandbox", done.stderr.strip() or "the guard says nothing", "docs/errors/SANDBOX_UNAVAILABLE.md")
    active = [name for name, state in layers.items() if state.startswith("yes")]
    missing = [
        f"{name} ({state.removeprefix('no').strip() or 'not here'})" for name, state in layers.items() if name not in active
    ]
    detail = f"active: {', '.join(active) or 'none'}" + (f"; missing: {', '.join(missing)}" if missing else "")
    if "no_new_privs" not in layers or layers["no_new_privs"].startswith("yes"):
        return _ok("sandbox", detail)
    return _fail("sandbox", detail, "docs/errors/SANDBOX_UNAVAILABLE.md")


def check_isolation(ctx: Context) -> Finding:
    """Layers that running workers really have."""
    with ctx.client() as client:
        frameworks = client.frameworks.list()
    seen = {f.name: f.isolation for f in frameworks if f.isolation}
    if not seen:
        return Finding(check="isolation", status="-", detail="no worker has run yet")
    return _ok("isolation", "; ".join(f"{name}: {', '.join(layers)}" for name, layers in seen.items()))


CHECKS: dict[str, Callable[[Context], Finding]] = {
    "python": check_python,
    "program": check_program,
    "sandbox": check_sandbox,
    "node": check_node,
    "store": check_store,
    "providers": check_providers,
    "model": check_model,
    "frameworks": check_frameworks,
    "isolation": check_isolation,
}
#: Checks that need a node.
_NEED_NODE = frozenset({"store", "providers", "model", "frameworks", "isolation"})


def findings(ctx: Context, names: list[str]) -> list[Finding]:
    """Runs checks; those that need a node are skipped where none answers."""
    found: list[Finding] = []
    down = False
    for name in names:
        if down and name in _NEED_NODE:
            found.append(Finding(check=name, status="-", detail="needs the node"))
            continue
        try:
            finding = CHECKS[name](ctx)
        except SingularityError as error:
            finding = _fail(name, f"{error.reason}: {error.message}", f"docs/errors/{error.reason}.md")
        down = down or (name == "node" and finding.status == "FAIL")
        found.append(finding)
    return found


def examine(ctx: Context) -> int:
    """`doctor`."""
    names = [name for name in ctx.args.checks if name != "check"] or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        raise ValueError(f"there is no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    found = findings(ctx, names)
    if ctx.io.format != "table":
        ctx.io.value({"checks": found})
    else:
        colours = {"ok": "green", "FAIL": "red", "-": "dim"}
        for finding in found:
            status = paint(f"{finding.status:<5}", colours[finding.status], sys.stdout)
            ctx.io.line(f"{status}{finding.check:<11} {finding.detail}")
            if finding.fix:
                ctx.io.line(f"     fix: {finding.fix}")
    return TASK_FAILED if any(finding.status == "FAIL" for finding in found) else OK


#: Lines of a configuration that might hold a secret, whatever they are named.
_SECRET = re.compile(r"(?im)^(\s*[\w.-]*(?:key|token|secret|password|credential)[\w.-]*\s*=\s*).*$")


def bundle(ctx: Context) -> int:
    """`report`: what is known of the node and this machine, without words of tasks and without keys."""
    parts: dict[str, object] = {
        "machine.json": {
            "singularity": __version__,
            "python": sys.version,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        },
        "doctor.json": [finding.model_dump() for finding in findings(ctx, [name for name in CHECKS if name != "model"])],
    }
    try:
        with ctx.client() as client:
            parts["frameworks.json"] = [f.model_dump(mode="json") for f in client.frameworks.list()]
            parts["providers.json"] = [p.model_dump(mode="json") for p in client.providers.list()]
            parts["failed_tasks.json"] = [
                {
                    "id": task.id, "state": task.state, "attempts": task.attempts, "executor": task.route.executor if task.route else "",
                    "reason": task.error.reason if task.error else "",
                }
                for task in client.list("state=FAILED", limit=100)
            ]  # fmt: skip
    except SingularityError as error:
        parts["not_reached.json"] = {"reason": error.reason, "message": error.message}
    texts = {name: json.dumps(value, indent=2) for name, value in parts.items()}
    if config := os.environ.get("SINGULARITY_CONFIG"):
        texts["config.toml"] = _SECRET.sub(r"\1<redacted>", Path(config).read_text())
    with tarfile.open(ctx.args.out, "w:gz") as archive:
        for name, text in texts.items():
            data = text.encode()
            info = tarfile.TarInfo(f"report/{name}")
            info.size, info.mtime = len(data), int(time.time())
            archive.addfile(info, io.BytesIO(data))
    ctx.io.value({"file": ctx.args.out, "parts": sorted(texts)}, f"{ctx.args.out}: {', '.join(sorted(texts))}")
    return OK
