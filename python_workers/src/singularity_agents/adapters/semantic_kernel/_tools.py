"""Functions: the engine's and the user's as a plugin, and the bracket around the functions of kernels that users bring."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakValueDictionary

from pydantic import PrivateAttr
from semantic_kernel.filters.filter_types import FilterTypes
from semantic_kernel.functions import (
    FunctionResult,
    KernelFunction,
    KernelFunctionMetadata,
    KernelParameterMetadata,
    KernelPlugin,
)

from ..._errors import CapabilityPending
from ...worker import _runtime
from .._tooling import WorkerTool, recorded, worker_tool
from ._messages import PLUGIN

#: Kernels that have their bracket, by identity; one that a task had made for itself goes with the task.
_kernels: WeakValueDictionary[int, Any] = WeakValueDictionary()


class EngineFunction(KernelFunction):
    """A function that the engine runs, or records. Not of a method: parameters named like the kernel's own would be filled by it."""

    _tool: WorkerTool = PrivateAttr()

    async def _invoke_internal(self, context: Any) -> None:
        known = self._tool.parameters.get("properties", {})
        arguments = {name: value for name, value in context.arguments.items() if name in known and value is not None}
        said = await self._tool.call(arguments)
        context.result = FunctionResult(function=self.metadata, value=said.content)

    async def _invoke_internal_stream(self, context: Any) -> None:
        raise CapabilityPending(
            f"the tool {self._tool.name} has one result, not a stream; call it with Kernel.invoke",
            reason="CAPABILITY_PENDING",
            metadata={"capability": "streamed_tool", "tool": self._tool.name},
        )


def kernel_plugin(tools: Iterable[Any], name: str = PLUGIN) -> KernelPlugin:
    """A plugin of `@tool` functions, or of plain ones."""
    made = [tool if isinstance(tool, WorkerTool) else worker_tool(tool) for tool in tools]
    return KernelPlugin(name=name, functions=[_function(tool, name) for tool in made])


def _function(tool: WorkerTool, plugin: str) -> EngineFunction:
    required = tool.parameters.get("required", ())
    parameters = [
        KernelParameterMetadata(
            name=name, description=schema.get("description", ""), is_required=name in required, schema_data=schema, type_="object"
        )
        for name, schema in tool.parameters.get("properties", {}).items()
    ]
    made = EngineFunction(
        metadata=KernelFunctionMetadata(
            name=tool.name,
            plugin_name=plugin,
            description=tool.description,
            parameters=parameters,
            is_prompt=False,
            is_asynchronous=True,
            return_parameter=KernelParameterMetadata(name="return", description="", type_="str", is_required=False),
        )
    )
    made._tool = tool
    return made


def bracket(kernel: Any) -> None:
    """Records the functions of a kernel of the user's, and takes its synchronous ones off the loop."""
    if _kernels.get(id(kernel)) is kernel:
        return
    _kernels[id(kernel)] = kernel
    for plugin in kernel.plugins.values():
        for function in plugin.functions.values():
            method = getattr(function, "method", None)
            if method is not None and not (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
                function.method = _in_thread(method)
    kernel.add_filter(FilterTypes.FUNCTION_INVOCATION, _recorded)


def _in_thread(method: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(method, *args, **kwargs)

    return run


async def _recorded(context: Any, next: Any) -> None:
    function = context.function
    if function.is_prompt or isinstance(function, EngineFunction) or _runtime.in_task() is None:
        await next(context)
        return
    known = {parameter.name for parameter in function.parameters}
    arguments = {name: value for name, value in context.arguments.items() if name in known}

    async def body() -> str:
        await next(context)
        return str(context.result)

    value, said, error = await recorded(function.fully_qualified_name, arguments, body)
    if error is not None:
        raise error
    if value is None:
        context.result = FunctionResult(function=function.metadata, value=said.content)
