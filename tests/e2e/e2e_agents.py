"""Agents of the end-to-end tests: good ones, and ones that do what a bad worker may do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from singularity_agents import agent, tool
from singularity_agents.worker._runtime import in_task


@tool(replay="safe")
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool(replay="safe")
def compute_for_ever() -> str:
    """Computes, and never gives its thread back."""
    while True:
        pass


@tool(replay="safe")
def wait_for_a_child() -> str:
    """Waits for a child that started one more, in a session of its own."""
    subprocess.run(["sh", "-c", "setsid sleep 986 & sleep 986"], check=True)
    return "never"


@tool(replay="safe")
def read_a_lot() -> str:
    """Gives a text that is dear to go on with."""
    return "word " * 40_000


@tool
async def ask_a_person() -> str:
    """Asks a person."""
    engine = in_task()
    assert engine is not None
    return f"the person said {await engine.ask('Shall I?')}"


@agent("shout")
async def shout(task: Any, engine: Any) -> str:
    return str(task.description).upper()


@agent("loop")
def loop(task: Any, engine: Any) -> str:
    """Ignores TERM, with a child in a session of its own and one whose parent has ended."""
    subprocess.Popen(["sleep", "987"], start_new_session=True)
    subprocess.run(["sh", "-c", "setsid sleep 987 &"], check=True)
    print("looping", flush=True)
    while True:
        pass


@agent("count")
async def count(task: Any, engine: Any) -> str:
    for number in range(1, 6):
        await asyncio.sleep(0.3)
        engine.text(f"{number} ")
    return "12345"


@agent("die")
async def die(task: Any, engine: Any) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@agent("raises")
async def raises(task: Any, engine: Any) -> str:
    raise ValueError("the user's own words")


@agent("garbage")
async def garbage(task: Any, engine: Any) -> str:
    os.write(4, b"\x00\x00\x00\x20" + b"garbage" * 8)
    await asyncio.sleep(30)
    return "never"


@agent("half_frame")
async def half_frame(task: Any, engine: Any) -> str:
    os.write(4, b"\x00\x00\x10\x00\x01\x08")
    os._exit(3)


@agent("huge_frame")
async def huge_frame(task: Any, engine: Any) -> str:
    os.write(4, b"\xff\xff\xff\xff")
    await asyncio.sleep(30)
    return "never"


@agent("flood")
def flood(task: Any, engine: Any) -> str:
    """Events without credit, as fast as it goes."""
    frame = (24 + 1000).to_bytes(4, "big") + bytes([1, 8, 1, 0]) + bytes(4) + bytes(8) + (1).to_bytes(8, "big") + b"x" * 1000
    while True:
        try:
            os.write(4, frame)
        except BlockingIOError:
            time.sleep(0.001)


@agent("hog")
async def hog(task: Any, engine: Any) -> str:
    """Takes more memory than it may."""
    held = []
    while True:
        held.append(bytearray(64 * 1024 * 1024))
        await asyncio.sleep(0.02)


@agent("spy")
async def spy(task: Any, engine: Any) -> str:
    """Tries what a worker must not be able to do; says what worked."""
    found: dict[str, Any] = {
        "env": sorted(os.environ),
        "pids": [p for p in os.listdir("/proc") if p.isdigit()],
    }
    wanted = json.loads(task.description)
    for name, path in wanted["files"].items():
        try:
            found[name] = len(Path(path).read_bytes())  # noqa: ASYNC240
        except OSError as error:
            found[name] = type(error).__name__
    try:
        socket.create_connection(("127.0.0.1", wanted["port"]), timeout=2).close()
        found["dial"] = "connected"
    except OSError as error:
        found["dial"] = type(error).__name__
    return json.dumps(found)


@agent("asks")
async def asks(task: Any, engine: Any) -> str:
    return str(await engine.chat(task.description))


@tool
def effect(number: int) -> str:
    """Does something that must not be done twice; the task's log is its witness."""
    running = in_task()
    assert running is not None
    running.log(f"effect {number}")
    return f"done {number}"


@agent("steps")
async def steps(task: Any, engine: Any) -> str:
    """Four model calls, two of them at once, with a tool between."""
    first = await engine.chat("step 1")
    said = effect(1)
    pair = await asyncio.gather(engine.chat("step 2"), engine.chat("step 3"))
    said += effect(2)
    return f"{first} {' '.join(pair)} {await engine.chat('step 4')} {said}"


@agent("asks_later")
async def asks_later(task: Any, engine: Any) -> str:
    """Asks its model when the file of its description is there."""
    while not os.path.exists(task.description):  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.05)
    return str(await engine.chat("late"))


@agent("own_client")
def own_client(task: Any, engine: Any) -> str:
    """A user's own client of OpenAI's wire, with what the environment says and a model that the engine does not have."""
    said = []
    for body in json.loads(task.description):
        request = urllib.request.Request(
            os.environ["OPENAI_BASE_URL"] + body.pop("path", "/chat/completions"),
            data=json.dumps(body).encode(),
            headers={
                "authorization": "Bearer " + body.pop("key", os.environ["OPENAI_API_KEY"]),
                "content-type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                said.append(answer.read().decode())
        except urllib.error.HTTPError as error:
            said.append(f"{error.code} {error.headers.get('x-should-retry')} {error.read().decode()}")
    return json.dumps(said)


@agent("is_stuck")
async def is_stuck(task: Any, engine: Any) -> str:
    """Never gives its loop back."""
    time.sleep(600)  # noqa: ASYNC251  (a stuck loop is what is tested)
    return "never"


@agent("blocks_its_loop")
async def blocks_its_loop(task: Any, engine: Any) -> str:
    return str(own_client.function(task, engine))


@agent("asks_people")
async def asks_people(task: Any, engine: Any) -> str:
    """A model call, a question, a decision, and a tool that must not be run twice."""
    first = await engine.chat("step 1")
    said = effect(1)
    name = await engine.ask("Who pays?", payload={"currency": "EUR"})
    if not await engine.approve(f"Shall {name} pay?"):
        return f"{name} does not pay"
    return f"{first} {name} pays, {said}"


@agent("asks_in_vain")
async def asks_in_vain(task: Any, engine: Any) -> str:
    """Goes on without the answer that nobody gave."""
    try:
        return str(await engine.ask("Anybody?", timeout="1s"))
    except TimeoutError as error:
        return str(error)


@agent("has_a_door_opened")
async def has_a_door_opened(task: Any, engine: Any) -> str:
    return f"the door is {await engine.client_tool('open_door', floor=3)}"


@agent("silent")
async def silent(task: Any, engine: Any) -> str:
    """Says that it goes on for a while, and then, in its first attempts, nothing more."""
    for _ in range(6):
        await asyncio.sleep(0.3)
        engine.heartbeat()
    if task.description == "for ever":
        await asyncio.sleep(3600)
    return "went on"


@tool
async def dawdle() -> str:
    """Takes a while, once."""
    await asyncio.sleep(2)
    return "dawdled"


@tool(replay="journaled")
async def dawdle_again() -> str:
    """Takes a while, as often as needed."""
    await asyncio.sleep(2)
    return "dawdled"


@agent("slow_once")
async def slow_once(task: Any, engine: Any) -> str:
    return str(await dawdle())


@agent("slow_journaled")
async def slow_journaled(task: Any, engine: Any) -> str:
    return str(await dawdle_again())
