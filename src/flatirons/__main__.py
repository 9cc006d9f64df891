"""The command `flatirons`. This file stays light: help, version and spelling mistakes are answered before anything is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a system on a task",
    "resume": "go on with a run from its newest intact checkpoint",
    "eval": "score a run's policy on episodes of its own",
    "predict": "say what a run makes of a file of inputs, and how sure it is",
    "solve": "plan on a task whose transition probabilities are known, exactly",
    "play": "watch a run's policy in a window or as a video; of a board game, play against it in the browser",
    "plot": "draw learning curves of one or more runs",
    "list": "list systems, tasks and presets; with a system: its settings and what to expect",
    "suite": "list the tasks that papers report together, with published scores",
    "check": "check an environment, with a fix for each fault found",
    "doctor": "say what this machine and installation can do",
    "match": "play games between two players (runs, plain opponents, engines) and say the Elo difference",
    "gtp": "play a run as an engine over GTP (Go and other games of stones)",
    "uci": "play a run as an engine over UCI (chess)",
    "usi": "play a run as an engine over USI (shogi)",
    "analyse": "search one position of a game and show what was visited most",
}

HELP = f"""usage: flatirons COMMAND ...

Landmark deep reinforcement learning systems in JAX, one command each.

commands:
{chr(10).join(f"  {name:<8} {what}" for name, what in COMMANDS.items())}

  flatirons COMMAND --help         the flags of a command
  flatirons train SYSTEM --help    the settings of a system, with their defaults
  flatirons --version

start here:
  flatirons train ppo CartPole-v1 --seed 0 --out runs/first
  flatirons eval runs/first --episodes 100
  flatirons play runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 after an error of the user's input (one sentence), 130/143 after a signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"flatirons {version('flatirons')}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}."
        print(f"flatirons: there is no command {command!r}; {hint}", file=sys.stderr)
        return 2
    from flatirons.run import cli

    return cli.run(command, arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
