"""A workflow that asks a person. In a file of its own: Agent Framework reads the annotations of handlers as objects."""

from agent_framework import Executor, WorkflowBuilder, WorkflowContext, handler, response_handler


class Asks(Executor):
    @handler
    async def begin(self, text: str, ctx: WorkflowContext) -> None:
        await ctx.request_info({"question": f"Shall I write of {text}?"}, str)

    @response_handler
    async def answered(self, original: dict, said: str, ctx: WorkflowContext[str, str]) -> None:
        await ctx.yield_output(f"well: {said}")


def workflow():
    asks = Asks(id="asks")
    return WorkflowBuilder(start_executor=asks, output_from=[asks]).build()
