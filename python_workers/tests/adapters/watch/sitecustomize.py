"""Writes down every name that is looked up and every address that is dialled by this process, from before the first import on."""

import os
import sys

_LOG = os.path.join(os.environ.get("HOME", "."), "network.log")


def _watch(event: str, arguments: tuple) -> None:
    if event == "socket.getaddrinfo":
        said = f"{arguments[0]}:{arguments[1]}"
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        said = f"{arguments[1][0]}:{arguments[1][1]}"
    else:
        return
    with open(_LOG, "a") as log:
        log.write(said + "\n")


sys.addaudithook(_watch)
