"""`.submit()` and `.map()` of an `@agent` function: its tasks on a node that knows it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ._client import Client, TaskHandle
from ._errors import InvalidRequest, NotFound, SingularityError
from ._models import AgentResult

if TYPE_CHECKING:
    from ._agent import AgentFunction
    from ._spec import TaskOptions

#: Tasks of one `map` under way, at most.
MAX_CONCURRENCY = 1000

_lock = threading.Lock()
_default: Client | None = None


class Place(NamedTuple):
    """Where a worker finds an agent."""

    project: Path
    entrypoint: str


def place(agent: AgentFunction[..., Any]) -> Place:
    """The folder and the `module:name` of an agent, for `[agents.NAME]`. Raises InvalidRequest where it has no file."""
    module = sys.modules.get(agent.function.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        raise InvalidRequest(f"the agent {agent.name} is in no file, so no worker can load it", reason="INVALID_FIELD")
    path = Path(file).resolve()
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    names = [name for name, value in vars(module).items() if value is agent]
    return Place(folder, f"{'.'.join(parts)}:{names[0] if names else agent.name}")


def default_client() -> Client:
    """One client of the environment's node for all agents of this process."""
    global _default
    with _lock:
        if _default is None:
            _default = Client()
        return _default


def submit(agent: AgentFunction[..., Any], task: str, client: Client | None, options: TaskOptions) -> TaskHandle:
    """Submits to the agent of this name."""
    if not isinstance(task, str):
        raise InvalidRequest(f"task is {type(task).__name__}, must be text", reason="INVALID_FIELD")
    try:
        return (client or default_client()).submit(task, **cast("TaskOptions", {**options, "agent": agent.name}))
    except NotFound as error:
        if error.reason != "AGENT_NOT_FOUND":
            raise
        where = place(agent)
        lines = f'[agents.{agent.name}]\nframework = "custom:{agent.name}"\nproject = "{where.project}"\nentrypoint = "{where.entrypoint}"'
        raise NotFound(
            f"the node does not know the agent {agent.name}; add to its configuration:\n{lines}",
            reason=error.reason,
            metadata=error.metadata,
        ) from error


def submit_all(
    agent: AgentFunction[..., Any],
    tasks: Iterable[str],
    client: Client | None,
    concurrency: int,
    return_exceptions: bool,
    options: TaskOptions,
) -> list[AgentResult | BaseException]:
    """Results in order; see `AgentFunction.map`."""
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise InvalidRequest(f"concurrency is {concurrency}, must be 1 to {MAX_CONCURRENCY}", reason="INVALID_FIELD")
    used = client or default_client()
    running: dict[str, TaskHandle] = {}
    stopped = threading.Event()

    def one(task: str) -> AgentResult:
        if stopped.is_set():
            raise SingularityError("not begun: an earlier task failed", reason="TASK_CANCELLED")
        handle = submit(agent, task, used, options)
        running[handle.id] = handle
        try:
            return handle.result()
        finally:
            running.pop(handle.id, None)

    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="agent-map") as threads:
        futures: list[Future[AgentResult]] = [threads.submit(one, task) for task in tasks]
        if not return_exceptions and any(f.exception() for f in wait(futures, return_when=FIRST_EXCEPTION).done):
            stopped.set()
            for handle in list(running.values()):
                _end(handle)
    errors = [error for f in futures if (error := f.exception()) is not None]
    if errors and not return_exceptions:
        first = next((e for e in errors if not (isinstance(e, SingularityError) and e.reason == "TASK_CANCELLED")), errors[0])
        raise first
    return [f.exception() or f.result() for f in futures]


def _end(handle: TaskHandle) -> None:
    try:
        handle.cancel(grace=0, reason="another task of the same map failed")
    except SingularityError:
        # It has ended by itself.
        return
