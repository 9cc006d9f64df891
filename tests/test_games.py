"""The board games: who moves, how results are signed, what is legal, how boards are turned; against pgx's own rules."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons import envs
from flatirons.envs import games
from flatirons.types import FlatironsError

PLAYED = ("tic_tac_toe", "connect_four", "othello", "hex", "go_9x9")
"""Those whose rules compile quickly enough to be played here."""


@functools.cache
def _step(name: str) -> Any:
    game = games.make(name)
    return jax.jit(lambda state, action: game.step(jax.random.key(0), state, action))


def play(name: str, actions: list[int]) -> tuple[Any, list[float]]:
    """The position after these moves, and the rewards on the way."""
    state, rewards = games.make(name).init(jax.random.key(0)), []
    for action in actions:
        state, reward, _ = _step(name)(state, jnp.int32(action))
        rewards.append(float(reward))
    return state, rewards


@pytest.mark.parametrize("name", games.GAMES)
def test_every_game_keeps_to_its_own_specs(name: str) -> None:
    task: Any = envs.make(f"pgx:{name.replace('_', '-')}", 2)
    game = task.env
    assert task.name == f"pgx:{name}" and isinstance(game, games.BoardGame) and hash(game) == hash(games.make(name))
    facts = game.board
    assert game.obs_spec.shape[:2] == (facts.rows, facts.cols)

    def some(key: Any) -> Any:
        env = task.reset(key)
        return task.observe(env), task.step(key, env, jnp.argmax(task.observe(env).legal, axis=-1).astype(jnp.int32))

    timestep, (_, outcome) = jax.eval_shape(some, jax.random.key(0))  # InGraph compares shapes and dtypes as it traces
    assert timestep.legal.shape == (2, game.num_actions) and outcome.next_obs.shape == (2, *game.obs_spec.shape)
    state = game.init(jax.random.key(0))
    assert int(state.player) == 0 and state.legal.any() and not state.terminated
    board, action = game.symmetries
    assert board.shape[1] == facts.rows * facts.cols and action.shape == (len(board), game.num_actions)
    np.testing.assert_array_equal(board[0], np.arange(board.shape[1]))
    np.testing.assert_array_equal(np.sort(action, axis=1), np.broadcast_to(np.arange(game.num_actions), action.shape))


def test_rewards_are_the_movers_and_outcomes_player_0s() -> None:
    state, rewards = play("tic_tac_toe", [0, 3, 1, 4, 2])
    assert rewards == [0, 0, 0, 0, 1] and float(state.outcome) == 1 and bool(state.terminated) and int(state.plies) == 5
    state, rewards = play("tic_tac_toe", [0, 3, 1, 4, 8, 5])
    assert rewards[-1] == 1 and float(state.outcome) == -1
    state, rewards = play("tic_tac_toe", [0, 1, 2, 4, 3, 5, 7, 6, 8])
    assert rewards[-1] == 0 and float(state.outcome) == 0 and bool(state.terminated)
    state, rewards = play("connect_four", [0, 1] * 3 + [0])
    assert rewards[-1] == 1 and float(state.outcome) == 1
    state, rewards = play("connect_four", [6, 0, 1, 0, 1, 0, 2, 0])
    assert rewards[-1] == 1 and float(state.outcome) == -1


@pytest.mark.parametrize("bad", [games.RESIGN, 3])
def test_resigning_and_illegal_moves_lose(bad: int) -> None:
    state, rewards = play("tic_tac_toe", [3, bad])
    assert rewards == [0, -1] and float(state.outcome) == 1 and bool(state.terminated)
    state, rewards = play("tic_tac_toe", [3, 4, bad])
    assert rewards == [0, 0, -1] and float(state.outcome) == -1


@pytest.mark.parametrize("name", PLAYED)
def test_who_resigns_moves_nothing(name: str) -> None:
    game = games.make(name)
    state, _ = play(name, [int(np.flatnonzero(np.asarray(game.init(jax.random.key(0)).legal))[-1])])
    for bad in (games.RESIGN, game.num_actions):
        after, reward, terminated = _step(name)(state, jnp.int32(bad))
        assert terminated and float(reward) == -1.0 and int(after.player) == int(state.player)
        jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)


def test_a_game_that_has_ended_stays_as_it_is() -> None:
    ended, _ = play("tic_tac_toe", [0, 3, 1, 4, 2])
    after, reward, terminated = _step("tic_tac_toe")(ended, jnp.int32(8))
    assert float(reward) == 0 and bool(terminated)
    jax.tree.map(np.testing.assert_array_equal, after, ended)
    assert np.asarray(ended.legal).all(), "a mask without a legal move would be a division by zero for many"


def test_observations_are_of_the_player_to_move() -> None:
    game = games.make("connect_four")
    state, _ = play("connect_four", [3])
    obs = np.asarray(game.observe(state))
    assert obs.dtype == np.uint8 and obs[5, 3, 1] == 1 and obs[..., 0].sum() == 0 and int(state.player) == 1
    state, _ = play("connect_four", [3, 3])
    obs = np.asarray(game.observe(state))
    assert obs[5, 3, 0] == 1 and obs[4, 3, 1] == 1


@functools.cache
def _random_game(name: str) -> Any:
    """Positions, legal masks and observations of a random game, and of the same one turned each way: `[S, T, ...]`."""
    game = games.make(name)
    board, action = (jnp.asarray(x) for x in game.symmetries)
    inverse = jnp.argsort(action, axis=1)

    def follow(key: Any) -> Any:
        def one_ply(states: Any, key: Any) -> Any:
            legal = jax.vmap(game.legal)(states)
            obs = jax.vmap(game.observe)(states)
            move = jax.random.categorical(key, jnp.where(legal[0], 0.0, -jnp.inf))
            # Move a is called inverse[s, a] on the turned board.
            after, _, _ = jax.vmap(game.step, in_axes=(None, 0, 0))(key, states, inverse[:, move].astype(jnp.int32))
            return after, (legal, obs, jax.vmap(game.outcome)(after), move)

        start = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(board), *x.shape)), game.init(key))
        return jax.lax.scan(one_ply, start, jax.random.split(key, min(game.longest, 60)))[1]

    return board, action, jax.jit(follow)(jax.random.key(1))


@pytest.mark.parametrize("name", PLAYED)
def test_a_turned_game_is_the_same_game(name: str) -> None:
    board, action, (legal, obs, outcome, _) = jax.device_get(_random_game(name))
    assert len(board) == {"dihedral": 8, "mirror": 2, "half-turn": 2}[games.GAMES[name].symmetry]
    cells = obs.reshape(*obs.shape[:2], -1, obs.shape[-1])
    for s in range(len(board)):
        # Othello's start is the same only after half turns and across the diagonals.
        if name != "othello" or s in (0, 2, 5, 7):
            np.testing.assert_array_equal(legal[:, s], legal[:, 0][:, action[s]])
            np.testing.assert_array_equal(cells[:, s], cells[:, 0][:, board[s]])
            np.testing.assert_array_equal(outcome[:, s], outcome[:, 0])


@pytest.mark.parametrize("name", PLAYED)
def test_play_is_pgxs(name: str) -> None:
    import pgx

    _, _, (legal, obs, outcome, moves) = jax.device_get(_random_game(name))
    env = pgx.make(name)  # type: ignore[arg-type]
    with jax.numpy_rank_promotion("allow"):
        step = jax.jit(env.step)
        state = jax.jit(env.init)(jax.random.PRNGKey(0))
        begins = int(state.current_player)
        for t in range(len(moves)):
            if bool(state.terminated):
                break
            np.testing.assert_array_equal(np.asarray(state.legal_action_mask), legal[t, 0])
            np.testing.assert_array_equal(np.asarray(state.observation), obs[t, 0])
            state = step(state, int(moves[t]))
            assert float(outcome[t, 0]) == float(state.rewards[begins])


def test_pgx_positions_come_back() -> None:
    game = games.make("connect_four")
    state, _ = play("connect_four", [3, 3, 2])
    jax.tree.map(np.testing.assert_array_equal, game.from_pgx(game.pgx(state)), state)


def test_bad_names_and_options() -> None:
    with pytest.raises(FlatironsError, match="connect_four"):
        envs.make("pgx:conect_four")
    with pytest.raises(FlatironsError, match="did you mean 'othello'"):
        games.make("otello")
    with pytest.raises(FlatironsError, match="has no option 'size'"):
        envs.make("pgx:hex", size=5)
    with pytest.raises(FlatironsError, match="is none; try pgx:connect_four"):
        games.demand_game(envs.make("jax:CartPole-v1"), "alphazero")
