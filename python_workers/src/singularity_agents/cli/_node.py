"""Commands about a node of this machine: up, config check, shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import WrongState
from .._local_node import program
from ._main import OK, REFUSED, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the commands."""
    up = commands.add_parser("up", parents=[shared], help="start a node in the foreground")
    up.description = "example: singularity up --config singularity.toml"
    up.add_argument("--config", metavar="FILE", help="TOML (SINGULARITY_CONFIG; default: the built-in defaults)")
    up.add_argument("--data-dir", metavar="DIR", help="where tasks are kept (SINGULARITY_DATA_DIR; default ./data)")
    up.set_defaults(run=up_here)

    config = commands.add_parser("config", parents=[shared], help="check a configuration file")
    verbs = config.add_subparsers(dest="verb", metavar="VERB", required=True)
    check = verbs.add_parser("check", parents=[shared], help="file, line, key and what was expected, for every error")
    check.add_argument("file", nargs="?", metavar="FILE", help="default: SINGULARITY_CONFIG")
    check.set_defaults(run=check_config)

    shell = commands.add_parser("shell", parents=[shared], help="an Erlang shell in the node of this machine")
    shell.set_defaults(run=open_shell)


def up_here(ctx: Context) -> int:
    """`up`: becomes the node, so that signals and the exit code are the node's own."""
    command = program()
    if ctx.args.config:
        os.environ["SINGULARITY_CONFIG"] = str(Path(ctx.args.config).resolve())
    if ctx.args.data_dir:
        os.environ["SINGULARITY_DATA_DIR"] = str(Path(ctx.args.data_dir).resolve())
    ctx.io.say("starting a node; Ctrl-C drains and stops it", "dim")
    ctx.io.say('try, in another terminal:   singularity run "What is the capital of France?"', "dim")
    os.execvp(command[0], command)


def tool(name: str) -> Path:
    """A program of the node's own: of the release, or of the checkout. Raises WrongState where there is none."""
    start = Path(shutil.which(program()[0]) or program()[0]).resolve()
    for folder in start.parents:
        for pattern in (f"lib/agent_native-*/priv/bin/{name}", f"apps/agent_native/priv/bin/{name}"):
            if found := sorted(folder.glob(pattern)):
                return found[-1]
    raise WrongState(f"{name} is not built", reason="NODE_NOT_INSTALLED")


def check_config(ctx: Context) -> int:
    """`config check`: the checker that the node itself uses."""
    file = ctx.args.file or os.environ.get("SINGULARITY_CONFIG")
    command = [str(tool("singularity_config")), "render"]
    if file:
        command += ["--config", file]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--out", f"{folder}/out"], check=False)
    if done.returncode == 0:
        ctx.io.value({"file": file, "ok": True}, f"ok {file or '(the built-in defaults)'}")
        return OK
    return REFUSED


def open_shell(ctx: Context) -> int:
    """`shell`: becomes the remote console of the node."""
    ctx.io.say("Ctrl-G, then q, leaves the shell; the node goes on", "dim")
    command = program()
    os.execvp(command[0], [command[0], "remote_console"])
