"""What LangChain reads off a tool's function and schema anew in each call: signatures, annotations compiled from their text. It was a
third of what a call of a tool cost.
"""

from __future__ import annotations

from langchain_core.tools import base, simple, structured
from langchain_core.utils._signature import _signature_parameters

from .. import _memo


def install() -> None:
    """Puts kept answers in place of the questions, in this process."""
    parameters = _memo.of_functions(_signature_parameters)
    config_name = _memo.of_functions(base._get_runnable_config_param)
    for module in (base, simple, structured):
        module._signature_parameters = parameters  # type: ignore[attr-defined]
        module._get_runnable_config_param = config_name  # type: ignore[attr-defined]
    base.get_all_basemodel_annotations = _memo.of_classes(base.get_all_basemodel_annotations)
