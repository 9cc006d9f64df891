#!/usr/bin/env bash
# Makes the peers' two environments, .venv-peers-torch and .venv-peers-jax, in the repository root.
#   PYTHON=python3.11 TORCH='torch==2.13.0' bash benchmarks/peers/install.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
# torch goes in first and alone: resolved together with the rest, pip prefers the newest release, whose wheel brings gigabytes of CUDA.
torch="${TORCH:-torch==2.13.0}"

install() {
    local venv="$1" requirements="$2"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet "$torch"
    "$venv/bin/pip" install --quiet "$torch" --requirement "$requirements"
}

install .venv-peers-torch benchmarks/peers/torch.txt
install .venv-peers-jax benchmarks/peers/jax.txt
.venv-peers-torch/bin/python -c 'import gymnasium, sb3_contrib, stable_baselines3, torch; gymnasium.make("HalfCheetah-v5").reset(); print("torch peers: stable-baselines3", stable_baselines3.__version__, "torch", torch.__version__)'
.venv-peers-jax/bin/python -c 'import gymnax, pyspiel, rejax, sbx; from importlib.metadata import version; print("jax peers:", *(f"{name} {version(name)}" for name in ("jax", "gymnax", "rejax", "sbx-rl", "open_spiel")))'
