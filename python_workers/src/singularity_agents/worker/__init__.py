"""The process that hosts a framework: frames, calls to the engine, heartbeat, and the run of a task.

Nothing outside this package touches the channel. It imports neither grpc nor any framework.
"""
