"""What comes before the first step: importing, --help, compiling, and a tiny run. `python -m benchmarks.speed.startup`

Alternating processes, medians. "Above jax" is `import jax` with our names resolved, less `import jax` alone.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import OURS, ROOT, clean_environment, header, versions, write
from benchmarks.speed.versus import arguments

IMPORTS = {
    "import_jax_s": "import jax",
    "import_jax_and_flatirons_s": "import jax, flatirons",
    "import_jax_and_every_name_s": "import jax, flatirons as fi; [getattr(fi, name) for name in fi.__all__]",
    "import_flatirons_alone_s": "import flatirons",
}

# Spelt out, so that a preset tuned anew does not make the budget indivisible.
SETTINGS = ["--num-envs", "8", "--num-steps", "32", "--total-steps", "2560"]


def wall(command: list[str], **environment: str) -> tuple[float, str]:
    """Seconds a process took from start to end, and what it printed. Exits with its words where it failed."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(**environment), capture_output=True, text=True)
    spent = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return spent, done.stdout


def import_seconds(statement: str) -> float:
    """Seconds of an import inside a fresh process, the interpreter's own start left out."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    return float(wall([str(OURS), "-c", code])[1].split()[-1])


def compile_seconds(folder: Path) -> float | None:
    """What the run's checkpoint says it spent compiling."""
    for path in sorted((folder / "checkpoints").rglob("*.json")):
        found = seek(json.loads(path.read_text()), "timing")
        if found is not None and "compile" in found:
            return float(found["compile"])
    return None


def seek(value: Any, name: str) -> dict[str, Any] | None:
    """The first dictionary of that name inside a JSON value."""
    if isinstance(value, dict):
        if isinstance(value.get(name), dict):
            return value[name]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            found = seek(part, name)
            if found is not None:
                return found
    return None


def main() -> None:
    """Measure, print and write startup.json."""
    args = arguments(__doc__)
    rounds = max(1, 3 * args.pairs)
    result = header("startup", "benchmarks.speed.startup")
    samples: dict[str, list[float]] = {name: [] for name in IMPORTS}
    samples |= {name: [] for name in ("help_s", "train_first_s", "train_second_s", "compile_first_s", "compile_second_s")}
    script = OURS.with_name("flatirons")
    flatirons = [str(script)] if script.exists() else [str(OURS), "-m", "flatirons"]
    for statement in IMPORTS.values():  # once untimed: byte code and the file cache
        import_seconds(statement)
    for _ in range(rounds):
        for name, statement in IMPORTS.items():
            samples[name].append(import_seconds(statement))
        samples["help_s"].append(wall([*flatirons, "--help"])[0])
    for _ in range(args.pairs):
        scratch = Path(tempfile.mkdtemp(prefix="flatirons-startup-"))
        try:
            for which in ("first", "second"):
                out = scratch / which
                command = [*flatirons, "train", "ppo", "jax:CartPole-v1", *SETTINGS, "--out", str(out), "--quiet"]
                samples[f"train_{which}_s"].append(wall(command, FLATIRONS_CACHE=str(scratch / "cache"))[0])
                compiled = compile_seconds(out)
                if compiled is not None:
                    samples[f"compile_{which}_s"].append(compiled)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in samples.items() if values}
    above = [full - bare for full, bare in zip(samples["import_jax_and_every_name_s"], samples["import_jax_s"], strict=True)]
    lazy = [full - bare for full, bare in zip(samples["import_jax_and_flatirons_s"], samples["import_jax_s"], strict=True)]
    result |= {
        "versions": {"ours": versions(("flatirons", "jax", "jaxlib", "numpy"))},
        "settings": {"rounds": rounds, "train": f"ppo jax:CartPole-v1 {shlex.join(SETTINGS)}, at first with an empty compilation cache"},
        "medians": medians | {"import_above_jax_s": statistics.median(lazy), "import_every_name_above_jax_s": statistics.median(above)},
        "samples": samples,
    }
    write(args.out / "startup.json", result)
    for name, value in result["medians"].items():
        print(f"startup: {name} {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
