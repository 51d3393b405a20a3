"""`zerozoo runs`: what tracked runs were, how they compare, and whether they can be repeated."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# By name: module of this folder, its function, what it does.
COMMANDS = {
    "list": ("runs_list", "list_runs", "every run below a folder, with filters"),
    "show": ("runs_list", "show_run", "one run: config, last metrics, files, what is wrong with it"),
    "compare": ("runs_compare", "compare_runs", "runs side by side; arms with intervals"),
    "plot": ("runs_plot", "plot_runs", "curves with intervals, aggregates, profiles, efficiency"),
    "rerun": ("runs_rerun", "rerun", "repeat a run and say whether it is the same"),
    "report": ("runs_report", "report", "one local HTML page of runs or of the whole zoo"),
    "tag": ("runs_files", "tag_runs", "give runs tags for later queries"),
    "import": ("runs_files", "import_files", "runs of Weights & Biases or TensorBoard"),
    "export": ("runs_files", "export_files", "runs as Parquet files"),
}


def usage() -> str:
    """The text of `zerozoo runs --help`."""
    lines = ["usage: zerozoo runs COMMAND ...", ""]
    lines += [f"  {name:<8} {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "`zerozoo runs COMMAND --help` tells more."])


def parse_and_run(arguments: Sequence[str]) -> int:
    """Entry of the command line. The commands are loaded when they are called: none needs torch."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        from zerozoo.cli.registry import _hint
        from zerozoo.runs.errors import UserError

        raise UserError(f"Unknown command {name!r} of `zerozoo runs`{_hint(name, COMMANDS)}")
    module_name, function, _ = COMMANDS[name]
    command = getattr(importlib.import_module(f"zerozoo.cli.{module_name}"), function)
    import tyro

    return int(tyro.cli(command, prog=f"zerozoo runs {name}", args=rest, config=(tyro.conf.OmitArgPrefixes,)))
