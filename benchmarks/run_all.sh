#!/usr/bin/env bash
# Every benchmark, timings first (they want the machine to themselves), then learning (two seeds side by side). Hours.
#   bash benchmarks/run_all.sh            all of it
#   bash benchmarks/run_all.sh speed      timings only
#   bash benchmarks/run_all.sh learning   learning only; finished seeds are kept, cut ones go on from their checkpoint
# One that fails does not stop the others; the exit status says whether any did.
set -uo pipefail
cd "$(dirname "$0")/.."
which="${1:-all}"
python=.venv/bin/python
failed=()

run() {
    echo "== $*"
    "$python" -m "$@" || failed+=("$*")
}

if [ "$which" = all ] || [ "$which" = speed ]; then
    [ -x .venv-peers-torch/bin/python ] && [ -x .venv-peers-jax/bin/python ] || bash benchmarks/peers/install.sh || exit 1
    run benchmarks.speed.startup
    run benchmarks.speed.ppo_cartpole_rejax
    run benchmarks.speed.ppo_cartpole_sb3
    run benchmarks.speed.ppo_halfcheetah_sb3
    run benchmarks.speed.dqn_cartpole_sb3
    run benchmarks.speed.dqn_pixels_sb3
    run benchmarks.speed.replay_memory
    run benchmarks.speed.ppo_atari_sb3
    run benchmarks.speed.trpo_sb3
    run benchmarks.speed.sac_halfcheetah
    run benchmarks.speed.num_envs
    run benchmarks.speed.accelerator
    run benchmarks.speed.a3c_workers
    run benchmarks.speed.maml_sinusoid
    run benchmarks.games.search_time
    run benchmarks.games.selfplay_time
fi
if [ "$which" = all ] || [ "$which" = learning ]; then
    run benchmarks.tabular.run
    for method in maml_sinusoid maml_navigation maml_omniglot maml_halfcheetah; do
        run "benchmarks.methods.$method"
    done
    run benchmarks.games.tictactoe
    run benchmarks.games.connect_four train
    run benchmarks.games.connect_four test
    run benchmarks.games.elo connect_four
    for game in othello gardner_chess animal_shogi go_9x9; do
        run benchmarks.games.two_hours train "$game"
        run benchmarks.games.two_hours test "$game"
    done
    run benchmarks.games.ablations
    run benchmarks.games.elo othello
    run benchmarks.games.alphago train
    run benchmarks.games.alphago test
    run benchmarks.games.mistakes minimax:5 "runs/benchmarks/connect-four-seed0?simulations=100&play_see_losses=true" --out benchmarks/results/games/mistakes.json
    run benchmarks.games.perft
    run benchmarks.games.finish
    run benchmarks.games.fuzz
    run benchmarks.games.honest --out benchmarks/results/games/honest.json
    for row in $("$python" -c 'from benchmarks.learning.rows import ROWS; print(*ROWS)'); do
        run benchmarks.learning.run "$row"
    done
    run benchmarks.learning.max_q
    run benchmarks.learning.pendulum_best
    run benchmarks.learning.sac_and_sb3
    # The runs that the rows above left: a panel of the figure each.
    run benchmarks.learning.estimates runs/benchmarks/{ddpg,sac}-{pendulum,inverted-pendulum,halfcheetah}/seed_0/run
    run benchmarks.methods.mc_dropout_uci
    run benchmarks.methods.mc_dropout_figures
    run benchmarks.methods.thompson
    run benchmarks.methods.ewc_permuted
    run benchmarks.methods.ewc_dqn
    run benchmarks.learning.ppo_table1
    run benchmarks.figures
fi
"$python" -m benchmarks.tables || failed+=(tables)
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
