"""AlphaZero's parts by hand and by brute force: results carried back, the loss, turning boards, gating, resignation, matches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_resume import left_at_half

import flatirons as fi
from flatirons import envs
from flatirons.data import positions
from flatirons.envs import games
from flatirons.envs.ingraph import InGraph
from flatirons.nets import resnet
from flatirons.plan import contest
from flatirons.run import checkpoint, folder, train
from flatirons.systems import alphazero
from flatirons.types import ArraySpec, FlatironsError

SMALL = alphazero.Config(
    total_steps=3_200, num_envs=8, num_steps=4, num_simulations=4, blocks=1, channels=16, policy_channels=2, value_channels=2,
    value_hidden=8, buffer_size=512, learning_starts=16, gradient_steps=2, batch_size=16, optimiser="adam", learning_rate=1e-3,
)  # fmt: skip


@functools.cache
def task() -> Any:
    return envs.make("pgx:tic_tac_toe", SMALL.num_envs)


GUARDED = dataclasses.replace(
    SMALL, gate_every=2, gate_games=4, gate_threshold=0.0, learning_starts=1, resign=True, resign_playing_on=0.0, leaf_symmetries=True
)
"""With all that AlphaGo Zero has on top."""


@functools.cache
def started(config: alphazero.Config) -> tuple[Any, Any]:
    """A State, and the compiled step that takes it on."""
    state = jax.jit(lambda key: alphazero.init(config, task(), key))(jax.random.key(0))
    return state, functools.partial(_step, config)


@jax.jit
def _step(config: alphazero.Config, state: Any) -> Any:
    return alphazero.step(config, task(), state)


# ------------------------------------------------------------------------------------------------------- the positions


def test_results_go_back_along_their_games() -> None:
    rng = np.random.default_rng(0)
    num_envs, capacity, steps, longest = 3, 60, 4, 9
    spec = ArraySpec((1, 1, 1), "uint8", 0, 1)
    replay = positions.create(spec, 2, num_envs, capacity)
    add = jax.jit(positions.add, static_argnums=2)
    player = np.zeros(num_envs, np.int64)
    length = np.zeros(num_envs, np.int64)
    history: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]
    for turn in range(30):
        rows: dict[str, Any] = {"player": np.zeros((steps, num_envs), np.int32), "end": np.zeros((steps, num_envs), bool)}
        rows["result"] = np.zeros((steps, num_envs), np.float32)
        for t in range(steps):
            for b in range(num_envs):
                length[b] += 1
                ends = length[b] >= longest or rng.random() < 0.2
                rows["player"][t, b], rows["end"][t, b] = player[b], ends
                history[b].append({"player": player[b], "z": None, "new": length[b] == 1})
                if ends:
                    rows["result"][t, b] = rng.choice([-1.0, 0.0, 1.0])
                    for move in reversed(history[b]):
                        move["z"] = rows["result"][t, b] * (1 if move["player"] == 0 else -1)
                        if move["new"]:
                            break
                    length[b], player[b] = 0, 0
                else:
                    player[b] = 1 - player[b]
        lead = (steps, num_envs)
        written = np.arange(turn * steps, (turn + 1) * steps, dtype=np.float32)
        replay = add(
            replay,
            positions.Rows(
                obs=np.zeros((*lead, 1, 1, 1), np.uint8), policy=np.zeros((*lead, 2), np.float32), legal=np.ones((*lead, 2), bool),
                value=np.broadcast_to(written[:, None], lead), settled=np.ones(lead, bool), **rows,
            ),
            longest,
        )  # fmt: skip
        rows_kept = capacity // num_envs
        known = {
            (i % rows_kept, b): move["z"]
            for b in range(num_envs)
            for i, move in enumerate(history[b])
            if i >= len(history[b]) - rows_kept and move["z"] is not None
        }
        assert int(jnp.sum(positions.counts(replay))) == len(known)
        for (slot, b), z in known.items():
            assert float(replay.outcome[slot, b]) == z
        if not known:
            continue
        slots, streams = positions.draw(replay, jax.random.key(turn), (4, 500))
        drawn = set(zip(np.asarray(slots).ravel().tolist(), np.asarray(streams).ravel().tolist(), strict=True))
        assert drawn <= set(known) and len(drawn) > 0.9 * len(known)
        sample = positions.read_at(replay, slots[0], streams[0])
        np.testing.assert_array_equal(sample.outcome, [known[int(s), int(b)] for s, b in zip(slots[0], streams[0], strict=True)])


def test_a_replay_must_hold_the_longest_game() -> None:
    with pytest.raises(FlatironsError, match="at least 104"):
        positions.check(8, 96, 4, 9)
    with pytest.raises(FlatironsError, match="multiple of num_envs=8"):
        positions.check(8, 1_001, 4, 9)
    positions.check(8, 104, 4, 9)


# ------------------------------------------------------------------------------------------------------ the network


def _shaken(params: Any, by: float) -> Any:
    """Every number moved by chance, so that none is 0 or 1."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + (by * rng.normal(size=x.shape)).astype(np.float32), params)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_plane_layout_is_a_plain_convolution(norm: Any) -> None:
    spec, shape = ArraySpec((4, 5, 3), "uint8", 0, 1), resnet.Shape(2, 16, norm, 3, 2, 8)
    params = _shaken(jax.jit(lambda key: resnet.resnet_init(key, spec, 7, shape))(jax.random.key(0)), 0.1)
    obs = jax.random.bernoulli(jax.random.key(2), 0.4, (6, 4, 5, 3)).astype(jnp.uint8)
    network = jax.jit(lambda obs: resnet.resnet(params, spec, shape, obs))
    logits, value = network(obs)
    assert logits.shape == (6, 7) and value.shape == (6,)

    def plain(p: Any, x: Any) -> Any:
        y = resnet._conv_native(x, p["w"])
        if norm == "layer":
            y = (y - y.mean(axis=-1, keepdims=True)) / jnp.sqrt(y.var(axis=-1, keepdims=True) + 1e-5)
        return y * p["gain"][None, None, None] + p["b"][None, None, None]

    def all_plain(obs: Any) -> Any:
        x = jax.nn.relu(plain(params["stem"], obs.astype(jnp.float32)))
        for block in params["blocks"]:
            x = jax.nn.relu(x + plain(block["second"], jax.nn.relu(plain(block["first"], x))))
        policy, value = params["policy"], params["value"]
        flat = [jax.nn.relu(x @ p["conv"]["w"][0, 0] + p["conv"]["b"][None, None, None]).reshape(6, -1) for p in (policy, value)]
        hidden = jax.nn.relu(flat[1] @ value["hidden"]["w"] + value["hidden"]["b"][None])
        logits = flat[0] @ policy["logits"]["w"] + policy["logits"]["b"][None]
        return logits, jnp.tanh((hidden @ value["out"]["w"])[:, 0] + value["out"]["b"])

    for found, expected in zip((logits, value), jax.jit(all_plain)(obs), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # A position's judgement does not hang on its company, and leading axes may be any.
    others = obs.at[:2].set(0).reshape(2, 3, 4, 5, 3)
    np.testing.assert_allclose(network(others)[0].reshape(6, 7)[2:], logits[2:], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- the loss


def test_loss_by_hand() -> None:
    state, _ = started(SMALL)
    params = jax.tree.map(jnp.zeros_like, state.params)
    # Zero parameters: v = 0 and p is even over the legal moves.
    params["value"]["out"]["b"] = params["value"]["out"]["b"] + 0.5
    legal = jnp.zeros((2, 9), bool).at[0, :4].set(True).at[1, :2].set(True)
    pi = jnp.zeros((2, 9)).at[0, :2].set(0.5).at[1, 0].set(1.0)
    batch = alphazero.Batch(jnp.zeros((2, 3, 3, 2), jnp.uint8), legal, pi, jnp.array([1.0, -1.0]))
    total, metrics = jax.jit(functools.partial(alphazero.loss, SMALL, task()))(params, batch)
    v = np.tanh(0.5)
    np.testing.assert_allclose(metrics["value_loss"], ((1 - v) ** 2 + (1 + v) ** 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], (np.log(4) + np.log(2)) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["l2"], 1e-4 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(metrics["search_entropy"], np.log(2) / 2, rtol=1e-5)
    np.testing.assert_allclose(total, metrics["value_loss"] + metrics["policy_loss"] + metrics["l2"], rtol=1e-6)


def test_the_learning_rate_drops_in_steps() -> None:
    config = dataclasses.replace(SMALL, learning_rate=1.0, learning_rate_drops=(0.5, 0.75))
    rates = [float(alphazero._learning_rate(config, jnp.int32(turn))) for turn in (0, 49, 50, 74, 75, 99)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_self_play_stores_what_the_search_said() -> None:
    state, step = started(SMALL)
    for _ in range(5):
        state, metrics = step(state)
    replay = jax.device_get(state.replay)
    rows = slice(0, 5 * SMALL.num_steps)
    assert replay.written == 20 and int(state.updates) > 0
    policy, legal, player = replay.policy[rows], replay.legal[rows], replay.player[rows]
    np.testing.assert_allclose(policy.sum(axis=-1), 1.0, rtol=1e-5)
    assert (policy * ~legal).sum() == 0 and np.allclose(policy * 4, np.round(policy * 4), atol=1e-5), "shares of four visits"
    stones = replay.obs[rows].sum(axis=(-3, -2, -1))
    np.testing.assert_array_equal(player, stones % 2)
    # A finished game's positions have one result, seen from both sides.
    for b in range(SMALL.num_envs):
        ends = np.flatnonzero(replay.end[rows, b])
        assert replay.finished[b] == (ends[-1] + 1 if len(ends) else 0)
        begin = 0
        for end in ends:
            signs = np.where(player[begin : end + 1, b] == 0, 1, -1)
            np.testing.assert_array_equal(replay.outcome[begin : end + 1, b], replay.result[end, b] * signs)
            begin = end + 1
    assert float(metrics["positions"]) == replay.finished.sum()


# ------------------------------------------------------------------------------------------------------ turning boards


def test_leaves_are_turned_and_their_policy_turned_back() -> None:
    state, _ = started(SMALL)
    game = task().env
    one, _, _ = jax.jit(lambda: game.step(jax.random.key(0), game.init(jax.random.key(0)), jnp.int32(1)))()
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (64, *x.shape)), one)
    config = dataclasses.replace(SMALL, leaf_symmetries=True)
    params = _shaken(state.params, 0.3)
    found = jax.jit(alphazero.evaluator(config, game))(params, jax.random.key(5), states)
    obs = np.asarray(game.observe(one))
    board, action = game.symmetries
    network = jax.jit(functools.partial(alphazero.network, config, game))
    possible = []
    for s in range(8):
        turned = obs.reshape(9, 2)[board[s]].reshape(1, 3, 3, 2)
        logits, value = network(params, turned)
        back = np.zeros(9)
        back[action[s]] = np.asarray(logits[0])
        possible.append(np.append(back, value[0]))
    seen = set()
    for row in np.concatenate([found.logits, found.value[:, None]], axis=1):
        errors = np.abs(np.stack(possible) - row).max(axis=1)
        assert errors.min() < 1e-4
        seen.add(int(errors.argmin()))
    assert len(seen) == 8


def test_turned_positions_are_learnt_from() -> None:
    game = task().env
    board, action = (jnp.asarray(x) for x in game.symmetries)
    obs = jnp.arange(18).reshape(1, 3, 3, 2)
    sample = positions.Sample(obs, jnp.arange(9.0)[None], jnp.ones((1, 9), bool), jnp.zeros(1), jnp.ones(1, bool), jnp.zeros(1))
    turned = positions.turned(sample, board[1:2], action[1:2])
    np.testing.assert_array_equal(turned.obs[0, ..., 0], np.rot90(np.arange(0, 18, 2).reshape(3, 3)))
    np.testing.assert_array_equal(turned.policy[0].reshape(3, 3), np.rot90(np.arange(9.0).reshape(3, 3)))


# ------------------------------------------------------------------------------------------------------- random openings


def test_random_openings_are_as_long_as_drawn_and_their_results_do_not_count() -> None:
    config = dataclasses.replace(SMALL, opening_plies=3, value_mix=0.0, learning_starts=1, gradient_steps=1)

    def watched(config: Any, task: Any, params: Any, batch: Any) -> Any:
        total, metrics = alphazero.loss(config, task, params, batch)
        return total, metrics | {"target": batch.value}

    step = jax.jit(lambda state: alphazero.step(config, task(), state, update=functools.partial(alphazero.update, loss=watched)))
    state = alphazero.init(config, task(), jax.random.key(0))
    turns = 8
    for _ in range(turns):
        state, _ = step(state)
    replay, drawn = jax.device_get(state.replay), set()
    for b in range(SMALL.num_envs):
        after = np.flatnonzero(replay.end[: turns * SMALL.num_steps, b]) + 1
        for begin, end in zip([0, *after[:-1]], after, strict=True):
            settled = list(replay.settled[begin:end, b])
            assert settled == sorted(settled), "random moves come first"
            drawn.add(settled.count(False))
    assert drawn == {0, 1, 2, 3}

    def targets(settled: bool) -> np.ndarray:
        marked = replay._replace(settled=np.full_like(replay.settled, settled), value=np.full_like(replay.value, 0.25))
        return np.asarray(step(state._replace(replay=marked))[1]["target"])

    assert 0.25 in targets(False) and 0.25 not in targets(True)


# ------------------------------------------------------------------------------------------------- gating, resignation


def test_the_best_is_replaced_by_what_beats_it() -> None:
    state, step = started(GUARDED)
    assert not isinstance(state.best, tuple)
    first = jax.device_get(state.best)
    state, metrics = step(state)
    state, metrics = step(state)
    assert float(metrics["gates"]) == 1.0 == float(metrics["gates_passed"]), "any score passes a threshold of 0"
    jax.tree.map(np.testing.assert_array_equal, state.best, state.params)
    jax.tree.map(np.testing.assert_array_equal, alphazero.actor(state).params, state.best)
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(state.best), strict=True))
    before = jax.device_get(state.best)
    state, metrics = step(state)
    assert float(metrics["gates"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, state.best, before)
    state, metrics = _step(dataclasses.replace(GUARDED, gate_threshold=1.01), state)
    assert float(metrics["gates"]) == 1.0 and float(metrics["gates_passed"]) == 0.0
    jax.tree.map(np.testing.assert_array_equal, state.best, before)


def test_hopeless_games_are_given_up_and_mistakes_counted() -> None:
    state, step = started(GUARDED)
    # Everybody finds everything hopeless.
    state, metrics = step(state._replace(resignation=alphazero.Resignation(jnp.float32(1.5), jnp.float32(0.0))))
    assert int(metrics["episodes"].count) == SMALL.num_envs * SMALL.num_steps
    np.testing.assert_array_equal(state.replay.outcome[: SMALL.num_steps], -1.0)

    lowest = jnp.array([[[-0.9, 0.2]], [[0.3, -0.95]]])
    experience: Any = type(
        "Rows", (), {"terminated": jnp.array([[True], [True]]), "extras": {"plays_on": jnp.ones((2, 1), bool), "lowest": lowest}}
    )
    at = state._replace(resignation=alphazero.Resignation(jnp.float32(-0.8), jnp.float32(0.0)))
    # Player 0 fell below in the first game and lost; player 1 did in the second and won: one of two was a mistake.
    moved, metrics = alphazero._watch_resignation(GUARDED, at, experience, jnp.array([[-1.0], [-1.0]]))
    np.testing.assert_allclose(metrics["resign_below"], -0.8 + 0.01 * (2 * 0.05 - 1), rtol=1e-5)
    assert float(moved.resignation.false_positives) > 0
    right, _ = alphazero._watch_resignation(GUARDED, at, experience, jnp.array([[-1.0], [1.0]]))
    np.testing.assert_allclose(right.resignation.below, -0.8 + 0.01 * 2 * 0.05, rtol=1e-5)
    assert float(right.resignation.false_positives) == 0


# --------------------------------------------------------------------------------------------------------------- matches


def test_a_match_counts_for_the_first_player() -> None:
    game = games.make("tic_tac_toe")
    gives_up = lambda key, states: jnp.full(states.player.shape, games.RESIGN)  # noqa: E731
    plays = functools.partial(contest.random_move, game)
    won = jax.jit(lambda key: contest.compete(game, plays, gives_up, key, 10, opening_plies=1))(jax.random.key(0))
    assert tuple(map(int, won)) == (10, 0, 0)
    lost = jax.jit(lambda key: contest.compete(game, gives_up, plays, key, 10, opening_plies=2))(jax.random.key(0))
    assert tuple(map(int, lost)) == (0, 0, 10) and float(lost.points) == 0
    fair = jax.jit(lambda key: contest.compete(game, plays, plays, key, 2_000))(jax.random.key(0))
    assert sum(map(int, fair)) == 2_000 and abs(float(fair.points) - 0.5) < 0.05
    # Random games of tic-tac-toe: who begins wins 58.5 %, 12.7 % are drawn.
    assert abs(int(fair.draws) / 2_000 - 0.127) < 0.03


def test_a_position_is_analysed() -> None:
    state, _ = started(SMALL)
    found = alphazero.analyse(SMALL, task(), alphazero.actor(state), state.collector.env, jax.random.key(0), num_simulations=6)
    assert found.visits.shape == (8, 9) and int(found.visits[0].sum()) == 6
    np.testing.assert_allclose(found.policy, found.visits / 6.0, rtol=1e-6)
    look = alphazero.analyse(SMALL, task(), alphazero.actor(state), state.collector.env.inner, jax.random.key(0), num_simulations=0)
    np.testing.assert_allclose(look.network_value, found.network_value, atol=1e-6)
    assert int(look.visits.sum()) == 0


class Cut(games.Game):
    """One to which a person has given a limit."""

    @property
    def max_episode_steps(self) -> int | None:
        return 7


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(FlatironsError, match="is none; try pgx:connect_four"):
        alphazero.check(SMALL, envs.make("jax:CartPole-v1", 8))
    with pytest.raises(FlatironsError, match="has no symmetries"):
        alphazero.check(dataclasses.replace(SMALL, symmetries=True, buffer_size=2**14), envs.make("pgx:gardner_chess", 8))
    with pytest.raises(FlatironsError, match="gate_games=3"):
        alphazero.check(dataclasses.replace(SMALL, gate_every=1, gate_games=3), task())
    turns = SMALL.total_steps // alphazero.steps_per_turn(SMALL)
    alphazero.check(dataclasses.replace(SMALL, gate_every=turns), task())
    with pytest.raises(FlatironsError, match=f"gate_every={turns + 1}, and the run has {turns} turns .* no match would be held"):
        alphazero.check(dataclasses.replace(SMALL, gate_every=turns + 1), task())
    # The last match of five turns is held after three of them, and learning begins later.
    each = alphazero.steps_per_turn(SMALL)
    late = dataclasses.replace(SMALL, gate_every=3, total_steps=5 * each, learning_starts=3 * each + 1)
    with pytest.raises(FlatironsError, match=f"of which learning begins after {3 * each + 1:_} positions: no match would be held"):
        alphazero.check(late, task())
    alphazero.check(dataclasses.replace(late, learning_starts=3 * each), task())
    # Without matches a run may be as short as one likes.
    alphazero.check(dataclasses.replace(late, gate_every=0, total_steps=each), task())
    with pytest.raises(FlatironsError, match=r"tries all moves .* counts 1225"):
        alphazero.check(dataclasses.replace(SMALL, see_wins=True), envs.make("pgx:gardner_chess", 8))
    with pytest.raises(FlatironsError, match="goes with see_wins"):
        alphazero.check(dataclasses.replace(SMALL, play_see_losses=True), task())
    with pytest.raises(FlatironsError, match=r"all pairs of moves, .* counts 65 moves"):
        alphazero.check(dataclasses.replace(SMALL, see_wins=True, play_see_losses=True), envs.make("pgx:othello", 8))
    with pytest.raises(FlatironsError, match="opening_plies=-1"):
        alphazero.check(dataclasses.replace(SMALL, opening_plies=-1), task())
    for name, wrong, said in (
        ("num_simulations", 0, "at least 1"),
        ("max_considered", 0, "at least 1"),
        ("value_hidden", 0, "at least 1"),
        ("policy_channels", 0, "at least 1"),
        ("play_simulations", -5, "not be negative"),
        ("play_max_considered", -1, "not be negative"),
        ("temperature_plies", -1, "not be negative"),
        ("learning_starts", 441, "may never be reached: of buffer_size=512 positions 440 are surely of finished games"),
    ):
        with pytest.raises(FlatironsError, match=f"{name}={wrong}.* {said}"):
            alphazero.check(dataclasses.replace(SMALL, **{name: wrong}), task())
    with pytest.raises(FlatironsError, match="is cut after 7 moves and may have 9, and a game that is cut has no result"):
        games.demand_game(InGraph(Cut("tic_tac_toe"), 1, "a short game"), "alphazero")
    alphazero.check(SMALL, task())


def test_every_game_has_a_preset_that_may_run() -> None:
    for name, facts in games.GAMES.items():
        preset = next(p for p in alphazero.PRESETS.values() if f"pgx:{name}" in p.tasks)
        config = alphazero.Config(**preset.config)
        assert config.total_steps % alphazero.steps_per_turn(config) == 0
        positions.check(config.num_envs, config.buffer_size, config.num_steps, facts.longest)
        assert config.learning_starts <= config.buffer_size - config.num_envs * facts.longest
        assert not config.symmetries or facts.symmetry != "none"


def test_the_papers_alphazero_can_be_asked_for() -> None:
    preset = alphazero.PRESETS["alphazero-paper"]
    config = alphazero.Config(**preset.config)
    assert preset.tasks == (), "it is never chosen by itself"
    # That what puct hands on to be learnt is the visits' shares is test_a_position_is_analysed's.
    assert config.search == "puct" and config.num_simulations == alphazero._play_simulations(config) == 800
    assert (config.dirichlet_alpha, config.dirichlet_fraction, config.temperature_plies) == (0.3, 0.25, 30)
    assert not (config.value_mix or config.opening_plies or config.symmetries or config.see_wins or config.gate_every or config.resign)
    turns, left = divmod(config.total_steps, alphazero.steps_per_turn(config))
    assert (turns * config.gradient_steps, left, config.batch_size) == (700_000, 0, 4_096)
    rates = [float(alphazero._learning_rate(config, jnp.int32(turn))) for turn in (99_999, 100_001, 300_001, 500_001)]
    np.testing.assert_allclose(rates, [0.2, 0.02, 0.002, 0.0002], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- learning


def test_it_learns_who_wins() -> None:
    # Another rate is another number, not another program.
    config = dataclasses.replace(SMALL, learning_rate=1e-2)
    state, step = started(SMALL)[0], functools.partial(_step, config)
    for _ in range(300):
        state, _ = step(state)
    slots, streams = positions.draw(state.replay, jax.random.key(0), (256,))
    sample = positions.read_at(state.replay, slots, streams)
    _, value = alphazero.network(config, task().env, state.params, sample.obs)
    assert np.corrcoef(value, sample.outcome)[0, 1] > 0.3


def test_a_run_goes_on_bit_for_bit(tmp_path: Any) -> None:
    guarded = dataclasses.replace(SMALL, gate_every=2, gate_games=4, gate_threshold=0.0, learning_starts=1, resign=True)
    settings = {f.name: getattr(guarded, f.name) for f in dataclasses.fields(guarded)} | {"total_steps": 256, "resign_playing_on": 0.5}
    whole = fi.train("alphazero", "pgx:tic_tac_toe", out=tmp_path / "whole", quiet=True, checkpoint_every=96, keep=3, **settings)
    left_at_half(tmp_path / "whole", tmp_path / "half", 96)
    resumed = fi.resume(tmp_path / "half", quiet=True)
    for a, b in zip(jax.tree.leaves(whole._state), jax.tree.leaves(resumed._state), strict=True):
        plain = (lambda x: jax.random.key_data(x)) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(plain(a), plain(b))
    played = fi.load(tmp_path / "half").evaluate(episodes=3, seed=0)
    assert played["games"] == 4 == played["wins"] + played["draws"] + played["losses"] and 0.0 <= played["mean"] <= 1.0
    # One raw observation without its position: the network alone, on a legal move.
    legal = np.arange(9) != 4
    assert fi.load(tmp_path / "half").policy(np.zeros((3, 3, 2)), legal=legal) != 4


def test_a_run_with_gates_starts_from_one_without_and_the_reverse(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {f.name: getattr(SMALL, f.name) for f in dataclasses.fields(SMALL)} | {"total_steps": 64}
    gated = plain | {"gate_every": 1, "gate_games": 4, "learning_starts": 1}
    task_name, begun = "pgx:tic_tac_toe", {}

    def begin(job: Any, made: Any, state: Any, counts: Any, warm: Any, eval_task: Any) -> Any:
        """A run as far as its first State, which is saved as that of a whole one would be."""
        del state, counts, eval_task
        state = alphazero.init(job.config, made, jax.random.key(job.seed))
        begun[job.path.name] = state = state if warm is None else warm(state)
        checkpoint.save(job.path / folder.CHECKPOINTS, state, {"step": 0}, step=0)

    monkeypatch.setattr(train, "drive", begin)
    for name, seed, parent, settings in (("a", 0, None, plain), ("b", 1, "a", gated), ("c", 2, "b", plain), ("d", 3, "b", gated)):
        parent = None if parent is None else tmp_path / parent
        fi.train("alphazero", task_name, out=tmp_path / name, quiet=True, seed=seed, from_run=parent, **settings)
    a, b, c, d = (begun[name] for name in "abcd")
    for found in (b.params, b.best, c.params, d.params, d.best):
        jax.tree.map(np.testing.assert_array_equal, found, a.params)
    assert c.best == () and all(x is not y for x, y in zip(jax.tree.leaves(b.best), jax.tree.leaves(b.params), strict=True))
    with pytest.raises(FlatironsError, match=r"do not fit alphazero .*, and blocks=1 \(here 2\)$"):
        fi.train("alphazero", task_name, out=tmp_path / "e", quiet=True, from_run=tmp_path / "a", **gated | {"blocks": 2})
