"""The node's part in the adapters' tests: model calls answered in order, tools by the rules of the node."""

from __future__ import annotations

from singularity_agents._proto.singularity.agents.v1 import common_pb2, provider_service_pb2
from singularity_agents._proto.singularity.worker.v1 import worker_pb2
from singularity_agents.worker import _frames as f

from ..worker.peer import Peer

Request = provider_service_pb2.ChatRequest


class Script:
    """Answers the calls of a task: model calls in order, tools by the rules of the node."""

    def __init__(self, peer: Peer, *answers: provider_service_pb2.ChatResponse) -> None:
        self._peer = peer
        self._answers = list(answers)
        self.asked: list[Request] = []
        self.tools: list[worker_pb2.ToolRequest] = []
        self.begun: list[worker_pb2.ToolBegin] = []
        self.ended: list[worker_pb2.ToolEnd] = []
        self.recorded: dict[str, str] = {}

    def __call__(self, call: f.Frame) -> None:
        if call.kind == f.Call.CHAT:
            self.asked.append(Request.FromString(call.payload))
            self._chat(call, self._answers.pop(0))
        elif call.kind == f.Call.TOOL:
            self.tools.append(worker_pb2.ToolRequest.FromString(call.payload))
            self._peer.reply(call, worker_pb2.ToolReply(content="391").SerializeToString())
        elif call.kind == f.Call.TOOL_BEGIN:
            begin = worker_pb2.ToolBegin.FromString(call.payload)
            self.begun.append(begin)
            known = self.recorded.get(begin.name)
            reply = worker_pb2.ToolBeginReply(recorded=known is not None, content=known or "")
            self._peer.reply(call, reply.SerializeToString())
        elif call.kind == f.Call.TOOL_END:
            self.ended.append(worker_pb2.ToolEnd.FromString(call.payload))
            self._peer.reply(call, b"")
        else:
            self._peer.refuse(call, "CAPABILITY_PENDING", "has not come yet", 12)

    def _chat(self, call: f.Frame, answer: provider_service_pb2.ChatResponse) -> None:
        if call.flags & f.FLAG_STREAM:
            for part in answer.message.content:
                for word in part.text.split(" "):
                    piece = provider_service_pb2.StreamChatResponse(text_delta=word)
                    self._peer.reply(call, piece.SerializeToString(), f.FLAG_STREAM, f.Type.REPLY_CHUNK)
        self._peer.reply(call, answer.SerializeToString())


def calculator() -> common_pb2.ToolDefinition:
    made = common_pb2.ToolDefinition(name="calculate", description="Calculates.", kind=common_pb2.TOOL_KIND_ENGINE)
    made.parameters.update({"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]})
    return made
