"""What `code.CodeVerifier` runs in the sandbox: loads a solution and calls its function on the arguments of the tests.

The text of this module becomes `main.py` there, so it uses the standard library only. Standard input holds
{"function", "calls"}; standard output gets one JSON line a call, ["value", ...] or ["error", name]. What the solution
prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def encode(value: Any) -> Any:
    """A value as JSON can carry it: tuples, sets and dictionaries are marked. TypeError for any other kind of value.

    The kind is compared and not its subclasses: an object that claims to be equal to everything is no answer.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(item) for item in value]
    if kind is tuple:
        return {"tuple": [encode(item) for item in value]}
    if kind in (set, frozenset):
        return {"set": sorted((encode(item) for item in value), key=json.dumps)}
    if kind is dict:
        return {"dict": sorted(([encode(key), encode(item)] for key, item in value.items()), key=json.dumps)}
    raise TypeError(f"a value of type {kind.__name__} cannot be carried over")


def decode(value: Any) -> Any:
    """The inverse of `encode`; a frozenset becomes a set."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    return {"tuple": tuple, "set": set}[kind](map(decode, items))


def main() -> None:
    """Answers every call in turn, so that what came before a hang or a crash is known."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    with open("solution.py", encoding="utf-8") as file:
        source = file.read()
    namespace: dict[str, Any] = {"__name__": "solution"}
    exec(compile(source, "solution.py", "exec"), namespace)
    function = namespace[request["function"]]
    for arguments in request["calls"]:
        try:
            answer = json.dumps(["value", encode(function(*decode(arguments)))])
        except Exception as error:
            answer = json.dumps(["error", type(error).__name__])
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
