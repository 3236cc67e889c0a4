"""The desk of a shop: an agent that looks a price up before it names one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import tool

PRICES = Path(__file__).with_name("prices.csv")
TOLD = "You work at the desk of a tea shop. Look up the price of what is asked for, then answer in one sentence."


@tool
def price_of(item: str) -> str:
    """Price of an item of the shop."""
    with PRICES.open(encoding="utf-8") as file:
        prices = {row["item"]: row["price"] for row in csv.DictReader(file)}
    return prices.get(item.strip().lower(), f"not for sale here; we have {', '.join(prices)}")


def desk(model: BaseChatModel) -> Any:
    """The engine hands its model over as `model`."""
    return create_agent(model, [price_of], system_prompt=TOLD)
