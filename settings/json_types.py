"""The type of a JSON object; its values have no type until the code that reads them checks them."""

from typing import Any

JsonObject = dict[str, Any]
