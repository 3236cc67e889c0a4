"""The user's code in the tests of tasks side by side."""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

from singularity_agents import agent

SWALLOWED = []


@agent("asks")
async def asks(task, engine):
    engine.text(f"text of {task.description}")
    engine.log(f"log of {task.description}")
    return await engine.chat(task.description)


@agent("streams")
async def streams(task, engine):
    return "".join([piece async for piece in engine.stream(task.description)])


@agent("asks_in_thread")
def asks_in_thread(task, engine):
    return engine.chat(task.description)


@agent("either")
async def either(task, engine):
    """What the task says: it is one agent, and its tasks differ."""
    kind, _, rest = task.description.partition(" ")
    if kind == "swallow":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if len(SWALLOWED) > 3:
                    raise
                SWALLOWED.append(rest)
    if kind == "thread":
        await asyncio.to_thread(until, Path(rest))
        return "waited"
    if kind == "leaves":
        # A task of its own that is still there at its end.
        later = asyncio.create_task(asyncio.sleep(60))
        return f"left {later.done()}"
    return await engine.chat(rest)


def until(path):
    while not path.exists():
        time.sleep(0.01)


@agent("blocks")
async def blocks(task, engine):
    """Waits for a model on the loop's own thread, as a synchronous tool of a framework does."""
    from singularity_agents.adapters import _chat
    from singularity_agents.worker._wire import common

    message = common.Message(role=common.ROLE_USER)
    message.content.add(text=task.description)
    response = _chat.ask_blocking(_chat.request([message]))
    return response.message.content[0].text


@agent("prints")
async def prints(task, engine):
    for number in range(3):
        print(f"{task.description} {number}")
        await asyncio.sleep(0)
    print("to stderr", task.description, file=sys.stderr)
    await asyncio.to_thread(print, f"{task.description} in a thread\n\n", end="")
    print(f"{task.description} has no end", end="")
    return await engine.chat(task.description)


@agent("prints_much")
def prints_much(task):
    for number in range(int(task.description)):
        print(f"{number:08}" + "x" * 1000)
    return "printed"


@agent("prints_long")
async def prints_long(task):
    print("y" * 1_000_000)
    print("ä" * 1_000_000, end="")
    print("\udc80 half")
    return "printed"


@agent("prints_at_once")
async def prints_at_once(task):
    for number in range(500):
        print(number)
    return "printed"


@agent("prints_elsewhere")
async def prints_elsewhere(task):
    thread = threading.Thread(target=print, args=("of nobody",))
    thread.start()
    thread.join()
    sys.stdout.buffer.write(b"past it\n")
    sys.stdout.flush()
    return str(sys.stdout.fileno())


@agent("forks")
async def forks(task):
    print("of the task")
    pid = os.fork()
    if pid == 0:
        print("of the child")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)  # noqa: ASYNC222
    return f"{sys.stdout.encoding} {sys.stdout.isatty()}"


@agent("logs_much")
async def logs_much(task, engine):
    if task.description == "asks":
        return await engine.chat("asks")
    for number in range(200):
        engine.log(str(number))
    return "logged"


@agent("asks_person")
def asks_person(task, engine):
    print("before the question")
    return engine.ask("Is it good?")
