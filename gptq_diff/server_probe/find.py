"""Finding the API below a base URL, and which model it serves."""

from __future__ import annotations

from typing import Any

from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.server_probe.address import EXAMPLE, Address
from gptq_diff.server_probe.answers import NotAnAnswer, read_json
from gptq_diff.server_probe.exchange import NoReply, Reply
from gptq_diff.server_probe.patience import Caller
from gptq_diff.server_probe.server import Found, refusal, said
from gptq_diff.suggest import nearest
from gptq_diff.text import one_line


def find(caller: Caller, address: Address, wanted: str | None) -> Found:
    """The API and the model; wanted: --model, None for the only one there is.

    CannotJudge where nothing that speaks this API answers, UsageError where the model has to be named.
    """
    answers, listless = [], []
    for api in address.api_places:
        reply = caller.call("GET", f"{api}/models")
        models = _models(reply)
        if models is not None:
            name, context = _chosen(models, wanted)
            return Found(api, name, _version(caller, address), context)
        if reply.status in (401, 403, 429) or reply.status >= 500:
            raise refusal(reply, said(reply, caller))
        answers.append(f"{api}/models answers {_what(reply, caller)}")
        if reply.status in (404, 405) and reply.kind == "application/json":
            listless.append(api)
    if wanted is not None and listless:  # perhaps an API that lists no models; the first question will show it
        return Found(listless[0], wanted, _version(caller, address), None)
    raise CannotJudge(f"no OpenAI-compatible API is there: {'; '.join(dict.fromkeys(answers))}", EXAMPLE)


def _models(reply: Reply) -> list[dict[str, Any]] | None:
    """The entries of a list of models, None where the reply is none."""
    if reply.status != 200:
        return None
    try:
        data = read_json(reply.body)
    except NotAnAnswer:
        return None
    entries = data.get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def _chosen(models: list[dict[str, Any]], wanted: str | None) -> tuple[str, int | None]:
    names = [str(entry["id"]) for entry in models]
    listed = one_line(", ".join(names), 200)
    if not names:
        raise CannotJudge("the server serves no model")
    if wanted is None and len(names) > 1:
        raise UsageError(f"the server serves {len(names)} models: {listed}", "Choose one by --model.")
    if wanted is not None and wanted not in names:
        raise UsageError(f"the server serves no model {wanted}{nearest(wanted, names)}", f"It serves {listed}.")
    entry = models[0 if wanted is None else names.index(wanted)]
    context = entry.get("max_model_len")  # vLLM's
    return str(entry["id"]), context if type(context) is int and context > 0 else None


def _version(caller: Caller, address: Address) -> str | None:
    """vLLM's, from /version."""
    try:
        data = read_json(caller.call("GET", f"{address.root}/version").body)
    except (NoReply, NotAnAnswer):
        return None
    version = data.get("version") if isinstance(data, dict) else None
    return one_line(version, 40) if isinstance(version, str) else None


def _what(reply: Reply, caller: Caller) -> str:
    words = said(reply, caller)
    return words if reply.status == 200 else f"HTTP {reply.status}, {words}"
