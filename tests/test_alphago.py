"""AlphaGo's four stages by hand and by identities: mixed leaves, patience, REINFORCE's baseline, the pool, one position a game, records."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatirons as fi
from flatirons import envs
from flatirons.envs import games, records
from flatirons.plan import mcts
from flatirons.run import job, players
from flatirons.systems import alphago, alphago_rl, alphago_sl, alphago_value
from flatirons.systems.alphago import networks
from flatirons.types import FlatironsError

SMALL = {"num_envs": 4, "blocks": 1, "channels": 16}
LEARNS = {"test_every": 2, "gradient_steps": 1, "batch_size": 8, "symmetries": False}
SL = SMALL | LEARNS | {"num_steps": 2, "expert_moves": 8, "expert_simulations": 2, "total_steps": 16}
RL = SMALL | {"num_steps": 10, "pool_every": 1, "pool_size": 2, "baseline": True, "total_steps": 40}
VALUE = SMALL | LEARNS | {"num_steps": 10, "last_ply": 6, "buffer_size": 64, "learning_starts": 1, "total_steps": 40}
PLAYER = SMALL | {"num_envs": 2, "num_steps": 10, "num_simulations": 3, "expand_after": 1, "total_steps": 20}


# Compiled once and run a few times: the compiler is told to hurry.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def task() -> Any:
    return envs.make("pgx:tic_tac_toe", 4)


@functools.cache
def _step() -> Any:
    return quick(lambda state, action: task().env.step(jax.random.key(0), state, action)[0])


def after(*actions: int) -> Any:
    """The position after these moves, as a batch of one."""
    state = task().env.init(jax.random.key(0))
    for action in actions:
        state = _step()(state, jnp.int32(action))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], state)


def with_bias(params: Any, bias: Any) -> Any:
    """A policy that thinks the same of every position."""
    logits = params["policy"]["logits"]
    fixed = {"w": jnp.zeros_like(logits["w"]), "b": jnp.asarray(bias, jnp.float32)}
    return {**params, "policy": {**params["policy"], "logits": fixed}}


def with_value(params: Any, bias: float) -> Any:
    """A value network that says tanh(bias) of every position."""
    out = params["value"]["out"]
    return {**params, "value": {**params["value"], "out": {"w": jnp.zeros_like(out["w"]), "b": jnp.full_like(out["b"], bias)}}}


@functools.cache
def four() -> networks.Networks:
    config: Any = alphago.Config(**PLAYER)
    game = task().env

    @quick
    def make(keys: Any) -> networks.Networks:
        sl, rl = (networks.policy_init(config, game, key) for key in (keys[0], keys[1]))
        return networks.Networks(sl, networks.rollout_init(game), rl, networks.value_init(config, game, keys[2]))

    return make(jax.random.split(jax.random.key(3), 3))


# ---------------------------------------------------------------------------------------------------- games in a turn


def test_the_first_game_of_a_stream_counts_where_it_ended() -> None:
    player = np.array([[0, 0], [1, 1], [0, 0], [0, 1], [1, 0]])
    terminated = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [1, 0]], bool)
    reward = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [-1, 0]], np.float32)
    found = networks.played(player, reward, terminated)
    # Stream 0: three moves, the first player won; what follows is another game. Stream 1 has not ended.
    np.testing.assert_array_equal(found.first_game, [[1, 0], [1, 0], [1, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(found.finished, [True, False])
    np.testing.assert_array_equal(found.result, [1, 0])
    np.testing.assert_array_equal(found.z[:3, 0], [1, -1, 1])


def test_the_learners_own_moves() -> None:
    rows = np.arange(4)[:, None] * 10 + np.arange(4)[None]
    np.testing.assert_array_equal(alphago_rl.own_moves(rows), [[0, 1, 12, 13], [20, 21, 32, 33]])


# ------------------------------------------------------------------------------------------------------- the first stage


def test_record_files_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("A.SGF", "b.sgf", "c.Pgn", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.sgf").mkdir()
    assert [path.name for path in alphago_sl._record_files(str(tmp_path))] == ["A.SGF", "b.sgf", "c.Pgn"]


def test_records_become_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = games.make("tic_tac_toe")
    played = [(4, 0, 8, 2, 1, 7, 3, 5, 6), (0, 3, 1, 4, 2)]
    text = "".join(records.write(game, records.Record("tic_tac_toe", actions, None)) for actions in played)
    (tmp_path / "games.sgf").write_text(text, encoding="utf-8")
    moves = alphago_sl.read_records(str(tmp_path), game)
    np.testing.assert_array_equal(moves, [played[0], [*played[1], -1, -1, -1, -1]])
    moves = moves.copy()
    moves[1, 5] = 5  # a move after the end, as where a draw was not claimed
    found = quick(lambda: alphago_sl._unfold(game, moves))()
    np.testing.assert_array_equal(found.known, [9, 5])
    for stream, actions in enumerate(played):
        for ply, action in enumerate(actions):
            assert int(found.action[ply, stream]) == action
            free = [cell for cell in range(9) if cell not in actions[:ply]]
            np.testing.assert_array_equal(np.flatnonzero(found.legal[ply, stream]), free)
            mine, theirs = np.asarray(found.obs[ply, stream]).reshape(9, 2).T
            np.testing.assert_array_equal(np.flatnonzero(mine), sorted(actions[ply % 2 : ply : 2]))
            np.testing.assert_array_equal(np.flatnonzero(theirs), sorted(actions[1 - ply % 2 : ply : 2]))
    drawn = alphago_sl.sample(found, jax.random.key(0), 400, jnp.array([False, True]))
    counts = np.bincount(np.asarray(drawn.action), minlength=9)
    assert set(np.flatnonzero(counts)) == set(played[1]) and counts[list(played[1])].min() > 50

    config = dataclasses.replace(alphago_sl.Config(**SL), records=str(tmp_path))
    alphago_sl.check(config, task())
    monkeypatch.chdir(tmp_path.parent)
    assert alphago_sl.located(dataclasses.replace(config, records=tmp_path.name)) == config  # a run is gone on with from anywhere
    with pytest.raises(FlatironsError, match="2 games"):
        alphago_sl.check(dataclasses.replace(config, test_every=10), task())
    with pytest.raises(FlatironsError, match="is a game of tic_tac_toe, not of connect_four"):
        alphago_sl.check(config, envs.make("pgx:connect_four", 4))
    with pytest.raises(FlatironsError, match="cannot be read"):
        alphago_sl.check(dataclasses.replace(config, records=str(tmp_path / "none.sgf")), task())
    # A game abandoned before its first move teaches nothing, and is no game to test on.
    empty = records.write(game, records.Record("tic_tac_toe", (), None))
    (tmp_path / "games.sgf").write_text(empty + text + empty, encoding="utf-8")
    np.testing.assert_array_equal(alphago_sl.read_records(str(tmp_path), game)[:, 0], [4, 0])
    (tmp_path / "games.sgf").write_text(empty * 3, encoding="utf-8")
    with pytest.raises(FlatironsError, match="none of 3 recorded games has a move"):
        alphago_sl.check(config, task())
    (tmp_path / "games.sgf").write_text(text.replace("b2", "a1", 1), encoding="utf-8")
    with pytest.raises(FlatironsError, match="game 1, move 2"):
        alphago_sl.check(config, task())


def test_accuracy_and_loss_by_hand() -> None:
    config = alphago_sl.Config(**SL)
    sl = with_bias(four().sl, np.arange(9.0))
    params = {"sl": sl, "rollout": networks.rollout_init(task().env)}
    legal = jnp.ones((4, 9), bool).at[2:, 8].set(False)
    batch = alphago_sl.Batch(jnp.zeros((4, 3, 3, 2), jnp.uint8), legal, jnp.array([8, 0, 7, 6]))
    right, (total, metrics) = quick(lambda p: (alphago_sl.accuracy(config, task(), p, batch), alphago_sl.loss(config, task(), p, batch)))(
        params
    )
    # p_sigma likes the last cell that is free; p_pi, even over all, the first.
    assert (float(right["sl"]), float(right["rollout"])) == (0.5, 0.25)
    np.testing.assert_allclose(right["chance"], (1 / 9 + 1 / 8) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["rollout_loss"], (np.log(9) + np.log(8)) / 2, rtol=1e-5)
    whole, without = (np.log(np.exp(np.arange(n)).sum()) for n in (9.0, 8.0))
    np.testing.assert_allclose(metrics["sl_loss"], np.mean([whole - 8, whole - 0, without - 7, without - 6]), rtol=1e-4)
    np.testing.assert_allclose(total, metrics["sl_loss"] + metrics["rollout_loss"], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ the second stage


def test_a_baseline_keeps_the_expected_gradient() -> None:
    config = alphago_rl.Config(**RL)
    params, position = four().rl, after(4, 0)
    legal = position.legal

    @quick
    def look(params: Any) -> Any:
        obs = jax.vmap(task().env.observe)(position)
        return obs, jnp.exp(mcts.log_policy(networks.policy_logits(config, task().env, params, obs), legal))[0]

    obs, p = look(params)

    @quick
    def gradient(advantage: Any) -> Any:
        # Every move once, weighted by how often it is played.
        rows = alphago_rl.Batch(
            jnp.repeat(obs, 9, axis=0)[None],
            jnp.repeat(legal, 9, axis=0)[None],
            jnp.arange(9)[None],
            advantage[None],
            p[None],
            jnp.float32(1.0),
        )
        return jax.grad(lambda params: alphago_rl.loss(config, task(), params, rows)[0])(params)

    z = jnp.linspace(-1.0, 1.0, 9)
    plain, shifted, constant = (jax.tree.leaves(gradient(a)) for a in (z, z - 0.7, jnp.full(9, 0.7)))
    assert max(float(jnp.abs(x).max()) for x in plain) > 1e-2
    for x, y, nothing in zip(plain, shifted, constant, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)
        np.testing.assert_allclose(nothing, 0.0, atol=2e-6)


def test_the_pool_and_the_baseline_of_a_turn() -> None:
    config = alphago_rl.Config(**RL)
    state = quick(lambda key: alphago_rl.init(config, task(), key))(jax.random.key(0))
    state = alphago_rl.handed(config, state, "alphago-value", four())
    step = quick(lambda state: alphago_rl.step(config, task(), state))

    def same(seat: int, params: Any) -> bool:
        return all(np.array_equal(x[seat], y) for x, y in zip(jax.tree.leaves(now.pool), jax.tree.leaves(params), strict=True))

    now = state
    assert same(0, four().sl) and same(1, four().sl) and int(now.in_pool) == 1
    jax.tree.map(np.testing.assert_array_equal, now.params, four().sl)
    first, metrics = step(state)
    now = first
    assert same(0, four().sl) and same(1, first.params) and int(now.in_pool) == 2
    second, _ = step(first)
    now = second
    assert same(0, second.params) and same(1, first.params), "the oldest goes"
    assert not np.array_equal(jax.tree.leaves(first.params)[0], jax.tree.leaves(second.params)[0])
    assert float(metrics["unfinished"]) == 0.0 and int(metrics["episodes"].count) >= 4
    drawn = jax.vmap(lambda key: alphago_rl.opponent(config, second, key)["stem"]["b"][0])(jax.random.split(jax.random.key(1), 64))
    assert set(np.asarray(drawn).tolist()) == set(np.asarray(second.pool["stem"]["b"][:, 0]).tolist()), "each of them is drawn"

    # The same games under v = 0, 1 and -1: mean (z - 1)^2 + mean (z + 1)^2 = 2 mean z^2 + 2.
    squares = {}
    for bias in (0.0, 20.0, -20.0):
        value = with_value(four().value, bias)
        squares[bias] = float(step(state._replace(networks=state.networks._replace(value=value)))[1]["advantage_square"])
    np.testing.assert_allclose(squares[20.0] + squares[-20.0], 2 * squares[0.0] + 2, rtol=1e-5)
    with pytest.raises(FlatironsError, match="baseline needs a value network"):
        alphago_rl.handed(config, state, "alphago-sl", four())


# ------------------------------------------------------------------------------------------------------- the third stage


def test_a_game_gives_one_position_and_three_players_move() -> None:
    config = alphago_value.Config(**VALUE)
    # p_sigma takes the first cell that is free, p_rho the last.
    up, down = (with_bias(four().sl, 60.0 * sign * np.arange(9.0)) for sign in (1, -1))
    actor = four()._replace(sl=down, rl=up)
    play = quick(lambda key: alphago_value._play(config, task(), actor, key)[1])
    at_random, cells = [], 0
    for seed in range(12):
        rows = jax.device_get(play(jax.random.key(seed)))
        found = jax.device_get(networks.played(rows.extras["player"], rows.reward, rows.terminated))
        keeps = found.first_game & rows.extras["keeps"]
        kept = np.flatnonzero(rows.extras["keeps"][:, 0])
        assert len(kept) == 1
        u = int(kept[0])
        assert 1 <= u <= config.last_ply
        for b in range(4):
            length = int(found.first_game[:, b].sum())
            assert keeps[:, b].sum() == (length > u)
            for t in range(length):
                free = np.flatnonzero(rows.legal[t, b])
                if t != u - 1:
                    assert rows.action[t, b] == (free[0] if t < u - 1 else free[-1])
                else:
                    at_random.append(list(free).index(rows.action[t, b]) / (len(free) - 1))
            if length > u:
                assert rows.obs[u, b].sum() == u, "s_{U+1} has U stones"
                cells += 1
                # The result is the last mover's reward, seen from who is to move.
                won = rows.reward[length - 1, b] * (1 if (length - 1 - u) % 2 == 0 else -1)
                assert found.z[u, b] == won
    assert cells > 20 and 0.2 < np.mean(at_random) < 0.8 and len(set(at_random)) > 4


def test_positions_are_kept_in_a_ring() -> None:
    empty = alphago_value._empty(task().env, 4)
    obs = jnp.arange(6, dtype=jnp.uint8)[:, None, None, None] * jnp.ones((1, 3, 3, 2), jnp.uint8)
    z = jnp.array([1.0, -1.0, 1.0, 0.0, 0.0, 1.0])
    once = alphago_value.add(empty, obs, z, jnp.array([True, False, True, False, False, True]))
    assert int(once.written) == 3
    np.testing.assert_array_equal(once.obs[:, 0, 0, 0], [0, 2, 5, 0])
    # Results 1, 1, 1: the best constant is never wrong; with -1 and -1 beside two of them it is 0, and 1 off.
    assert float(alphago_value.best_constant(once)) == 0.0
    twice = alphago_value.add(once, obs, -jnp.ones(6), jnp.array([True, True, False, False, False, False]))
    np.testing.assert_array_equal(twice.obs[:, 0, 0, 0], [1, 2, 5, 0])
    np.testing.assert_array_equal(twice.z, [-1.0, 1.0, 1.0, -1.0])
    assert float(alphago_value.best_constant(twice)) == 1.0
    drawn = alphago_value.sample(once, jax.random.key(0), 200)
    assert set(np.asarray(drawn.obs[:, 0, 0, 0]).tolist()) == {0, 2, 5}, "only what has been written"


# ----------------------------------------------------------------------------------------------------------- the player


def test_a_leaf_is_mixed() -> None:
    game, value = task().env, with_value(four().value, 0.4)
    params = four()._replace(value=value)
    # One cell is left, which ends the game drawn; two are left, one of which wins for the second player, whose move it is.
    drawn, open_ = after(4, 0, 8, 2, 1, 7, 3, 5), after(0, 3, 1, 4, 8, 7, 6)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), drawn, open_)
    config = alphago.Config(**PLAYER)
    judge = quick(lambda mix, key: alphago.evaluator(dataclasses.replace(config, mix=mix), game)(params, key, both))
    v = np.tanh(0.4)
    np.testing.assert_allclose(judge(0.0, jax.random.key(0)).value, [v, v], rtol=1e-5)
    seen = []
    for seed in range(40):
        z = np.asarray(judge(1.0, jax.random.key(seed)).value)
        np.testing.assert_allclose(judge(0.5, jax.random.key(seed)).value, 0.5 * v + 0.5 * z, rtol=1e-5)
        assert z[0] == 0.0
        seen.append(float(z[1]))
    # An even policy finds the win every other time; otherwise the board fills up.
    assert set(seen) == {0.0, 1.0} and 8 < sum(seen) < 32
    # Many games from each leaf, and their mean.
    many = dataclasses.replace(config, rollouts=400, mix=1.0)
    z = np.asarray(quick(lambda key: alphago.evaluator(many, game)(params, key, both).value)(jax.random.key(0)))
    assert z[0] == 0.0 and abs(z[1] - 0.5) < 0.08, "four deviations of a mean of 400"
    # P = p_sigma^beta, whichever side the board was looked at from.
    unturned = dataclasses.replace(config, leaf_symmetries=False, mix=0.0)

    @quick
    def at_sight(params: Any) -> Any:
        logits = networks.policy_logits(config, game, params.sl, jax.vmap(game.observe)(both))
        return alphago.evaluator(unturned, game)(params, jax.random.key(0), both).logits, logits

    prior, logits = at_sight(params)
    np.testing.assert_allclose(prior, 0.67 * logits, rtol=1e-5, atol=1e-6)


def test_the_search_waits_before_it_goes_beyond_a_position() -> None:
    game, wait = games.make("tic_tac_toe"), 3
    logits = jnp.zeros(10).at[0].set(30.0)

    def evaluate(params: Any, key: Any, states: Any) -> mcts.Evaluation:
        return mcts.Evaluation(jnp.broadcast_to(logits, (1, 10)), jax.random.uniform(key, (1,)))

    select = alphago.patient(alphago.apv(5.0), wait, 9)
    found, tree = quick(
        lambda key: mcts.search(alphago.Patient(game), evaluate, (), key, after(), num_simulations=4, select=select, temperature=0.0)
    )(jax.random.key(0))
    tree = jax.device_get(tree)
    # Three simulations end at the position after cell 0, each with a value of its own; the fourth goes one move further.
    assert found.visits[0, 0] == 4 and found.visits[0, 9] == 0
    np.testing.assert_array_equal(tree.children_visits[0, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 2])
    raw = tree.raw_values[0]
    np.testing.assert_allclose(found.q[0, 0], (-raw[1] - raw[2] - raw[3] + raw[4]) / 4, rtol=1e-5)
    assert int(found.action[0]) == 0


def test_the_choice_is_the_papers() -> None:
    visits, values, prior = np.array([3, 1, 0, 0]), np.array([0.2, -0.5, 0.9, 0.0]), np.array([0.2, 0.3, 0.4, 0.1])
    for edges in (visits, np.zeros(4, int)):
        tree = type("Tree", (), {"children_visits": jnp.asarray(edges)[None], "children_prior_logits": jnp.log(jnp.asarray(prior))[None]})()
        tree.qvalues = lambda node: jnp.asarray(values)
        for c in (0.1, 1.0, 5.0):
            scores = np.where(edges > 0, values, 0.0) + c * prior * np.sqrt(edges.sum()) / (1 + edges)
            expected = int(np.argmax(scores)) if edges.sum() else int(np.argmax(prior))
            assert int(alphago.apv(c)(jax.random.key(0), tree, 0, 0)) == expected


# -------------------------------------------------------------------------------------------------------- one after another


def test_the_stages_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = functools.partial(fi.train, task="pgx:tic_tac_toe", quiet=True, preset=None)

    def stage(name: str, settings: dict[str, Any], before: Any = None) -> Any:
        return train(f"{name}", out=tmp_path / name, from_run=None if before is None else tmp_path / before, **settings)

    with pytest.raises(FlatironsError, match="alphago-rl goes on from a run of alphago-sl or alphago-value; give --from"):
        stage("alphago-rl", RL)
    sl = stage("alphago-sl", SL)
    assert sl.metrics[-1]["expert_positions"] == 8 and 0 <= sl.metrics[-1]["sl_test_accuracy"] <= 1
    # As if it had learned from records that are gone: playing and the next stage do without them, going on does not.
    recorded = job.read_record(sl.path)
    job.write_record(sl.path, recorded | {"config": recorded["config"] | {"records": str(tmp_path / "gone.sgf")}})
    jax.tree.map(np.testing.assert_array_equal, fi.load(sl.path).actor, sl.actor)
    with pytest.raises(FlatironsError, match=r"gone\.sgf cannot be read"):
        fi.resume(sl.path, total_steps=24)
    # And as if they were there, but others than it began with.
    game = games.make("tic_tac_toe")
    written = "".join(records.write(game, records.Record("tic_tac_toe", (0, 3, 1, 4, 2), None)) for _ in range(2))
    (tmp_path / "gone.sgf").write_text(written, encoding="utf-8")
    job.write_record(sl.path, job.read_record(sl.path) | {"data_sha256": "0" * 64})
    with pytest.raises(FlatironsError, match=r"the files of .*gone\.sgf are not those that .* began with"):
        fi.resume(sl.path, total_steps=24)
    with pytest.raises(FlatironsError, match=r"alphago-sl, so alphago-value cannot start from it; give a run of alphago-rl"):
        stage("alphago-value", VALUE, "alphago-sl")
    with pytest.raises(FlatironsError, match="do not fit alphago-rl with these settings; use the same blocks and channels"):
        stage("alphago-rl", RL | {"baseline": False, "channels": 8}, "alphago-sl")
    assert "WARNING" not in capsys.readouterr().err
    half = train("alphago-sl", out=tmp_path / "half", **SL | {"stop_at": 8})
    stage("alphago-rl", RL | {"baseline": False}, half.path.name)
    assert f"half stands at 8 of {SL['total_steps']} decisions" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "alphago-rl")
    rl = stage("alphago-rl", RL | {"baseline": False}, "alphago-sl")
    jax.tree.map(np.testing.assert_array_equal, rl.actor.sl, sl.actor.sl)
    jax.tree.map(np.testing.assert_array_equal, rl.actor.rollout, sl.actor.rollout)
    value = stage("alphago-value", VALUE, "alphago-rl")
    jax.tree.map(np.testing.assert_array_equal, value.actor[:3], rl.actor[:3])
    # The player's own training is the contract's to test; what it is handed, and how it thinks with it, are looked at here.
    config, loaded = alphago.Config(**PLAYER), fi.load(tmp_path / "alphago-value").actor
    player = alphago.handed(config, jax.eval_shape(lambda: alphago.init(config, task(), jax.random.key(0))), "alphago-value", loaded)
    jax.tree.map(np.testing.assert_array_equal, alphago.actor(player), value.actor)
    found = alphago.analyse(config, task(), alphago.actor(player), after(4), jax.random.key(0), num_simulations=5)
    assert int(found.visits.sum()) == 5 and found.visits.shape == (1, 9) and not found.legal[0, 4]
    # It goes on from its last tree, here with positions that are stayed at.
    waits, key = dataclasses.replace(config, expand_after=2), jax.random.key(0)
    _, tree = alphago.go_on(waits, task(), alphago.actor(player), after(4), key, num_simulations=20)
    child = tree.children_index[0, 0]
    reply = int(jnp.argmax(jnp.where(jnp.arange(10) < 9, tree.children_visits[0, 0], 0)))
    on, _ = alphago.go_on(waits, task(), alphago.actor(player), after(4, reply), key, num_simulations=20, before=tree)
    known = tree.children_visits[0, child[reply], :9]
    assert known.sum() > 0 and (on.visits[0] >= known).all() and int(on.visits.sum()) == int(known.sum()) + 20
    # Its tree is that of the moves alone, whatever was stayed at.
    found, seen = jax.device_get(alphago.analyse_tree(waits, task(), alphago.actor(player), after(4), key, num_simulations=20))
    assert seen.visits.shape == seen.child.shape == (1, 21, 9) and (seen.visits[0, 0] == found.visits[0]).all()
    lines = players.expected_play(seen.child[0], seen.visits[0])
    assert set(lines) == set(np.flatnonzero(found.visits[0])) and max(map(len, lines.values())) > 1
    assert all(len({4, *line}) == 1 + len(line) for line in lines.values()), "no cell is taken twice"
    with pytest.raises(FlatironsError, match="plays without a search"):
        alphago_sl.analyse(sl.config, task(), sl.actor, after(4), jax.random.key(0), num_simulations=5)
    look = alphago_sl.analyse(sl.config, task(), sl.actor, after(4), jax.random.key(0), num_simulations=0)
    np.testing.assert_allclose(look.prior.sum(), 1.0, rtol=1e-5)


def test_what_cannot_run_is_refused() -> None:
    def refused(module: Any, settings: dict[str, Any], match: str, on: Any = None) -> None:
        with pytest.raises(FlatironsError, match=match):
            module.check(module.Config(**settings), on or task())

    for module, settings in ((alphago_sl, SL), (alphago_rl, RL), (alphago_value, VALUE), (alphago, PLAYER)):
        module.check(module.Config(**settings), task())
        refused(module, settings, "is none; try pgx:connect_four", envs.make("jax:CartPole-v1", 4))
    refused(alphago_sl, SL | {"expert_moves": 9}, "expert_moves=9 must be a multiple of a turn's 8")
    refused(alphago_sl, SL | {"total_steps": 8}, "leaves nothing of total_steps=8")
    refused(alphago_sl, SL | {"test_every": 5}, "leave none to test on")
    refused(alphago_rl, RL | {"num_steps": 9}, "num_steps=9 must be even")
    refused(alphago_value, VALUE | {"last_ply": 10}, "last_ply=10 is not before the end")
    refused(alphago_value, VALUE | {"buffer_size": 7}, "buffer_size=7 must be at least 8")
    refused(alphago, PLAYER | {"mix": 1.5}, "mix=1.5 must lie between 0")
    refused(alphago, PLAYER | {"rollouts": 0}, "rollouts=0 must be at least 1")


def test_presets_may_run() -> None:
    for module in (alphago_sl, alphago_rl, alphago_value, alphago):
        for preset in module.PRESETS.values():
            config: Any = module.Config(**preset.config)
            assert config.total_steps % module.steps_per_turn(config) == 0
            module.check(config, envs.make(preset.tasks[0], config.num_envs))
