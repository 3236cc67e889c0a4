"""A real node for a test: its agents are the test's own functions, its model is scripted."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from typing_extensions import Self

from .._agent import AgentFunction
from .._client import Client
from .._errors import InvalidRequest
from .._local_node import LocalNode
from .._remote import place
from ._model import ScriptedModel


class Node:
    """A node on loopback, with ports and data of its own, that ends with the `with` block and leaves nothing behind.

    `agents` are `@agent` functions in files (workers import them); `model` is the model of all agents (default: `echo`, which
    answers with the question); `config` is more TOML, for example other agents. Needs a node program: a checkout, SINGULARITYD
    or `singularityd` in PATH. Raises ConnectionFailed with the end of its log if it does not come up.
    """

    def __init__(self, *agents: AgentFunction[..., Any], model: ScriptedModel | None = None, config: str = "") -> None:
        for agent in agents:
            if not isinstance(agent, AgentFunction):
                raise InvalidRequest(f"{agent!r} is no @agent function", reason="INVALID_FIELD")
        self._agents = agents
        self._model = model
        self._config = config
        self._node: LocalNode | None = None
        self._client: Client | None = None

    def __enter__(self) -> Self:
        if self._model is not None:
            self._model.start()
        try:
            self._node = LocalNode(self._toml())
            self._node.start()
        except BaseException:
            self._stop_model()
            raise
        self._client = Client(self._node.address)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._client is not None:
            self._client.close()
        if self._node is not None:
            self._node.stop()
        self._stop_model()

    def _stop_model(self) -> None:
        if self._model is not None:
            self._model.stop()

    @property
    def client(self) -> Client:
        """A client of the node."""
        if self._client is None:
            raise InvalidRequest("the node does not run: use it in a with block", reason="WRONG_STATE")
        return self._client

    @property
    def address(self) -> str:
        """HOST:PORT of the node."""
        return self.client.address

    def _toml(self) -> str:
        if self._model is None:
            provider, name = '[providers.echo]\ndialect = "echo"\n', "echo"
        else:
            provider = f'[providers.scripted]\ndialect = "openai"\nbase_url = "{self._model.base_url}"\nmodels = ["scripted"]\n'
            name = "scripted"
        text = provider + f'[models.default]\nendpoints = [{{ provider = "{name}", name = "{name}" }}]\n'
        for agent in self._agents:
            where = place(agent)
            text += (
                f'[agents.{json.dumps(agent.name)}]\nframework = "custom:{agent.name}"\n'
                f"project = {json.dumps(str(where.project))}\nentrypoint = {json.dumps(where.entrypoint)}\n"
            )
        return text + self._config
