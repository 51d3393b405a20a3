"""The command `zerozoo`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from zerozoo import __version__
from zerozoo.runs.errors import UserError

COMMANDS = {
    "list": ("list_recipes", "every recipe: paper, family, verdicts of its claims"),
    "show": ("show", "what a recipe is, its config with defaults, how to run it"),
    "train": ("train", "run a recipe"),
    "evaluate": ("evaluate", "accuracy, pass@k, lengths, behaviours of a run or a model"),
    "reproduce": ("reproduce", "run the claim of a recipe, with all arms and seeds"),
    "verify": ("verify", "score a file of answers: right, wrong, unscorable or timeout"),
    "runs": ("runs", "tracked runs: list, show, compare, plot, rerun, report, tag, import, export"),
    "doctor": ("doctor", "check this machine, a model and the verifier"),
}


def usage() -> str:
    """The text of `zerozoo --help`."""
    lines = [f"zerozoo {__version__}: zero RL and a zoo of recipes around it", "", "usage: zerozoo COMMAND ...", ""]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "`zerozoo COMMAND --help` tells more. First steps: zerozoo show simplerl-zoo"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 for success, 2 for something the user can mend, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    try:
        return _command(arguments[0], arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zerozoo ... | head`
        return 0


def _command(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        from zerozoo.cli.registry import _hint

        raise UserError(f"Unknown command {name!r}{_hint(name, COMMANDS)}")
    module = importlib.import_module(f"zerozoo.cli.{COMMANDS[name][0]}")
    if hasattr(module, "parse_and_run"):
        return int(module.parse_and_run(arguments))
    import tyro

    return int(tyro.cli(module.run, args=arguments, prog=f"zerozoo {name}"))


if __name__ == "__main__":
    sys.exit(main())
