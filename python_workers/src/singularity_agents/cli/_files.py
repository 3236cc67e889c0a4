"""`get --artifacts`: the files that came with an answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from .._models import Artifact


def write_artifacts(artifacts: Sequence[Artifact], folder: Path) -> list[Path]:
    """Writes them into a folder, which is made; gives the files. What stands elsewhere is left out.

    Raises ValueError before anything is written where a name is no plain name of a file: it comes from an agent.
    """
    inline = [(artifact.name, base64.b64decode(artifact.inline)) for artifact in artifacts if artifact.inline is not None]
    for name, _ in inline:
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f'the artifact "{name}" has no plain name of a file; read it with get -o json')
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in inline:
        (folder / name).write_bytes(content)
        files.append(folder / name)
    return files
