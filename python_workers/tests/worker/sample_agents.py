"""The user's code in the tests of the worker."""

import asyncio
import sys
import time
from pathlib import Path

from singularity_agents import AgentCapabilities, UniversalAgent, agent, tool

RAN = []


@agent("shout")
async def shout(task, engine):
    return (await engine.chat(task.description)).upper()


@agent("plain")
def plain(task):
    return f"{task.description} {task.attempt}"


@agent("data")
async def data(task):
    return {"words": task.description.split(), "n": 2}


@agent("fails")
async def fails(task):
    raise ValueError("no such thing")


@agent("leaves")
async def leaves(task):
    sys.exit(3)


@agent("blocking")
def blocking(task, engine):
    return engine.chat(task.description) + "!"


@agent("pieces")
async def pieces(task):
    for word in task.description.split():
        yield word


@agent("flood")
async def flood(task):
    for number in range(500):
        yield f"{number},"


@tool(replay="journaled")
def add(a: int, b: int = 1) -> int:
    """Adds numbers."""
    RAN.append((a, b))
    return a + b


@tool
async def send(to: str) -> str:
    """Sends something."""
    RAN.append(to)
    if to == "nobody":
        raise ValueError("no address")
    return f"sent to {to}"


@agent("tools")
async def tools(task, engine):
    total = add(2, 3)
    answer = await send(task.description)
    return f"{total} {answer} {len(RAN)}"


@agent("thread_tool")
def thread_tool(task):
    return str(add(1))


@agent("engine_tool")
async def engine_tool(task, engine):
    return await engine.tool("calculate", expression=task.description)


@agent("remembers")
async def remembers(task, engine):
    return await engine.memory("get", key="x")


@agent("stubborn")
async def stubborn(task):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if len(RAN) > 3:
                raise
            RAN.append("swallowed")


@agent("waits_in_thread")
def waits_in_thread(task):
    while not Path(task.description).exists():
        time.sleep(0.01)
    return "waited"


@agent("blocks_the_loop")
async def blocks_the_loop(task):
    time.sleep(30)  # noqa: ASYNC251


@agent("leaves_a_task")
async def leaves_a_task(task, engine):
    async def later():
        await asyncio.sleep(60)

    RAN.append(asyncio.create_task(later()))
    return "done"


class Summarise(UniversalAgent):
    def capabilities(self):
        return AgentCapabilities(task_types=("general",))

    async def execute(self, task):
        return await self.engine.chat(f"Summarise: {task.description}", system="Be short.")


class Factory:
    def __init__(self, engine):
        self._engine = engine

    async def run(self, description, history=()):
        return f"{description} after {len(history)}"


def build(engine):
    return Factory(engine)
