"""Text reaches a watcher as it is made, and is the same once it is stored; also over a kill of the node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from conftest import KillableNode, eventually

from singularity_agents import Client
from singularity_agents import _models as m

WORDS = " ".join(f"word{n}" for n in range(60))


def test_text_comes_ahead_of_its_batch_and_is_stored_as_it_was_seen(client: Client) -> None:
    handle = client.submit(WORDS, method="native", model="echo?each=10ms")
    live = list(handle.watch())
    stored = list(client.watch(handle.id))
    assert "".join(e.text for e in live) == WORDS == "".join(e.text for e in stored)
    numbered = [e.sequence for e in live if e.sequence]
    assert numbered == [e.sequence for e in stored] == list(range(1, len(numbered) + 1))
    ahead = [e for e in live if e.kind == "text_delta" and not e.sequence]
    batches = [e for e in stored if e.kind == "text_delta"]
    # A batch closes after 50 ms: five words or so. What came ahead came word by word.
    assert len(ahead) > 2 * len(batches)


def test_who_reads_slowly_misses_nothing(client: Client) -> None:
    handle = client.submit(WORDS, method="native", model="echo?each=2ms")
    text = ""
    for event in handle.watch():
        text += event.text
        if event.kind == "attempt_started":
            handle.wait("60s")
    assert text == WORDS


def test_a_watch_over_a_kill_of_the_node_begins_the_text_anew(killable: Callable[[str], KillableNode]) -> None:
    node = killable("")
    seen: list[m.Event] = []
    with Client(node.address, max_retries=8) as client:
        handle = client.submit(WORDS, method="native", model="echo?each=30ms")
        reader = threading.Thread(target=read_into, args=(client, handle.id, seen), daemon=True)
        reader.start()
        eventually(lambda: sum(e.kind == "text_delta" for e in seen) > 5)
        node.kill()
        node.start()
        deadline = time.monotonic() + 60
        reader.join(deadline - time.monotonic())
        assert not reader.is_alive()
        begins = [n for n, e in enumerate(seen) if e.kind == "attempt_started"]
        assert len(begins) == 2 and seen[begins[1]].data["discard_text"]
        assert "".join(e.text for e in seen[begins[1] :]) == WORDS
        numbers = [e.sequence for e in seen if e.sequence]
        assert numbers == sorted(set(numbers))


def read_into(client: Client, task_id: str, seen: list[m.Event]) -> None:
    for event in client.watch(task_id):
        seen.append(event)
