"""Whether the server is there, takes the key and has the model: asked before anything is measured."""

import json

from batchyard.errors import BadTarget
from batchyard.flags import hint
from batchyard.loadtest.answers import refusal_of
from batchyard.loadtest.client import Client


async def check_target(client: Client, url: str, model: str | None) -> str:
    """The model's name in the API. Raises BadTarget, one line that says what to do."""
    exchange = await client.get("/v1/models")
    if not exchange.status:
        raise BadTarget(f"--url {url}: cannot be reached ({exchange.error}): is the server running there?")
    if exchange.status in (401, 403):
        raise BadTarget(f"--api-key: {url} refuses it ({refusal_of(exchange)})")
    if exchange.status == 404 and model:
        return model  # it has no list
    if exchange.status != 200:
        raise BadTarget(f"--url {url}: GET /v1/models was answered with {refusal_of(exchange)}")
    try:
        names = [str(card["id"]) for card in json.loads(exchange.body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadTarget(f"--url {url}: its /v1/models is not OpenAI's: is this the right address?") from error
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        raise BadTarget(f"--model: say which; {url} has {', '.join(names) or 'none'}")
    if model not in names:
        raise BadTarget(f"--model {model}: {url} has {', '.join(names) or 'none'}{hint(model, names)}")
    return model
