"""The tree search against a plain program of the papers' pseudocode, and on positions with one right move."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatirons.envs import games
from flatirons.plan import mcts
from flatirons.types import FlatironsError

TTT, C4 = games.make("tic_tac_toe"), games.make("connect_four")


def position(game: Any, actions: list[int]) -> Any:
    """A batch of one position after these moves."""
    state, step = game.init(jax.random.key(0)), _step(game)
    for action in actions:
        state, _, _ = step(state, jnp.int32(action))
    return jax.tree.map(lambda x: jnp.asarray(x)[None], state)


@functools.cache
def _step(game: Any) -> Any:
    return jax.jit(lambda state, action: game.step(jax.random.key(0), state, action))


def blank(params: Any, key: Any, states: Any) -> mcts.Evaluation:
    """Nothing is known: every move alike, every value 0."""
    del params, key
    return mcts.Evaluation(jnp.zeros(states.legal.shape), jnp.zeros(states.legal.shape[0]))


def opinionated(params: Any, key: Any, states: Any) -> mcts.Evaluation:
    """Some fixed function of the position (as tic-tac-toe's observation), the same for equal ones."""
    del key
    cells = jax.vmap(TTT.observe)(states).astype(jnp.float32).reshape(-1, 18)
    return mcts.Evaluation(2.0 * jnp.sin(cells @ params["p"]), jnp.tanh(cells @ params["v"]))


PARAMS = {
    "p": jax.random.normal(jax.random.key(1), (18, 9)),
    "v": jax.random.normal(jax.random.key(2), (18,)),
}


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _find(game: Any, evaluate: Any, kind: str, num_simulations: int, params: Any, states: Any, key: Any) -> Any:
    if kind == "gumbel":
        return mcts.gumbel_search(game, evaluate, params, key, states, num_simulations=num_simulations, scale=0.0)
    noise = (0.3, 0.25) if kind == "noisy" else None
    return mcts.search(game, evaluate, params, key, states, num_simulations=num_simulations, noise=noise)


def find(game: Any, actions: list[int], kind: str = "puct", num_simulations: int = 64, evaluate: Any = blank) -> Any:
    return _find(game, evaluate, kind, num_simulations, PARAMS, position(game, actions), jax.random.key(0))


# ---------------------------------------------------------------------------------------- against a plain program


class Node:
    """A node of the reference: N, W, P as the papers have them."""

    def __init__(self, board: tuple[int, ...]):
        self.board, self.children, self.visits, self.total = board, {}, 0, 0.0
        self.prior: dict[int, float] = {}


LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


def reference(simulations: int) -> tuple[dict[int, int], dict[int, float]]:
    """AlphaZero's search on an empty tic-tac-toe board, with dictionaries. Boards are seen by the player to move: 1 mine, -1 theirs."""
    p, v = np.asarray(PARAMS["p"], np.float64), np.asarray(PARAMS["v"], np.float64)

    def judge(node: Node) -> float:
        planes = np.array([[c == 1, c == -1] for c in node.board], np.float64).reshape(-1)
        if any(all(node.board[i] == -1 for i in line) for line in LINES):
            return -1.0  # who moved last has won
        legal = [a for a in range(9) if node.board[a] == 0]
        if not legal:
            return 0.0
        weights = np.exp(2.0 * np.sin(planes @ p)[legal])
        node.prior = dict(zip(legal, weights / weights.sum(), strict=True))
        return math.tanh(planes @ v)

    root = Node((0,) * 9)
    root.total, root.visits = judge(root), 1
    for _ in range(simulations):
        path = [root]
        while True:
            node = path[-1]
            if not node.prior:
                value = judge(node)  # an end, seen again
                break
            c = math.log((1 + node.visits + 19652) / 19652) + 1.25

            def score(a: int, node: Node = node, c: float = c) -> float:
                child = node.children.get(a)
                n, q = (child.visits, -child.total / child.visits) if child else (0, 0.0)
                return q + c * node.prior[a] * math.sqrt(node.visits) / (1 + n)

            a = max(sorted(node.prior), key=score)
            if a not in node.children:
                mine = list(node.board)
                mine[a] = 1
                node.children[a] = Node(tuple(-x for x in mine))
                path.append(node.children[a])
                value = judge(path[-1])
                break
            path.append(node.children[a])
        for node in reversed(path):
            node.visits, node.total = node.visits + 1, node.total + value
            value = -value
    return (
        {a: child.visits for a, child in root.children.items()},
        {a: -child.total / child.visits for a, child in root.children.items()},
    )


@pytest.mark.parametrize("simulations", [3, 64])
def test_puct_equals_the_pseudocode(simulations: int) -> None:
    found, _ = find(TTT, [], num_simulations=simulations, evaluate=opinionated)
    visits, q = reference(simulations)
    np.testing.assert_array_equal(found.visits[0], [visits.get(a, 0) for a in range(9)])
    np.testing.assert_allclose(found.q[0], [q.get(a, 0.0) for a in range(9)], atol=1e-5)
    np.testing.assert_allclose(found.total[0], found.visits[0] * found.q[0])
    np.testing.assert_allclose(found.policy[0], found.visits[0] / simulations)
    assert int(found.action[0]) == max(visits, key=lambda a: visits[a])


def test_one_step_of_puct_by_hand() -> None:
    # Two moves of priors 0.8 and 0.2 and values 0.4 and -0.6 for who moves there; c = 1.25 within 1e-3.
    # 1st: U = 1.25 * (0.8, 0.2) * sqrt(1) -> move 0, Q = -0.4.
    # 2nd: -0.4 + 1.25 * 0.8 * sqrt(2) / 2 = 0.307; 0 + 1.25 * 0.2 * sqrt(2) = 0.354 -> move 1, Q = 0.6.
    # 3rd: -0.4 + 1.25 * 0.8 * sqrt(3) / 2 = 0.466; 0.6 + 1.25 * 0.2 * sqrt(3) / 2 = 0.817 -> move 1.
    def evaluate(params: Any, key: Any, states: Any) -> mcts.Evaluation:
        del params, key
        first, second = states.inner["_x"].board[:, 7] >= 0, states.inner["_x"].board[:, 8] >= 0
        value = jnp.where(first & second, 0.0, jnp.where(first, 0.4, jnp.where(second, -0.6, 0.0)))
        logits = jnp.zeros((len(value), 9)).at[:, 7].set(math.log(0.8)).at[:, 8].set(math.log(0.2))
        return mcts.Evaluation(logits, value)

    # A board on which only 7 and 8 are left and nobody can win soon.
    two_left = position(TTT, [0, 3, 1, 4, 5, 2, 6])
    for simulations, expected in ((1, [1, 0]), (2, [1, 1]), (3, [1, 2])):
        found, _ = _find(TTT, evaluate, "puct", simulations, PARAMS, two_left, jax.random.key(0))
        np.testing.assert_array_equal(found.visits[0, 7:], expected)


# ------------------------------------------------------------------------------------------------------------- probes

WIN = {
    # X has 0 and 1, O has 3 and 4: X wins with 2, O with 5.
    "x": (TTT, [0, 3, 1, 4], 2),
    "o": (TTT, [0, 3, 1, 4, 8], 5),
    "four, first": (C4, [0, 6, 0, 6, 0, 6], 0),
    "four, second": (C4, [0, 6, 0, 6, 1, 6, 2], 6),
}
BLOCK = {
    "x": (TTT, [8, 0, 3, 1], 2),
    "o": (TTT, [0, 4, 1], 2),
    "four, first": (C4, [0, 6, 1, 6, 0, 6], 6),
    "four, second": (C4, [0, 6, 0, 6, 0], 0),
}


@pytest.mark.parametrize("kind", ["puct", "gumbel"])
@pytest.mark.parametrize("name", WIN)
def test_it_takes_a_win(name: str, kind: str) -> None:
    game, actions, right = WIN[name]
    found, _ = find(game, actions, kind)
    assert int(found.action[0]) == right and float(found.q[0, right]) == 1.0 and float(found.value[0]) > 0.2
    assert int(jnp.argmax(found.policy[0])) == right


@pytest.mark.parametrize("kind", ["puct", "gumbel"])
@pytest.mark.parametrize("name", BLOCK)
def test_it_blocks_a_win(name: str, kind: str) -> None:
    game, actions, right = BLOCK[name]
    found, _ = find(game, actions, kind, num_simulations=200)
    assert int(found.action[0]) == right
    worst = np.where(np.asarray(found.visits[0]) > 0, np.asarray(found.q[0]), 1.0)
    assert worst.min() < -0.1, "what does not block loses"


def test_signs_turn_with_every_ply() -> None:
    # X threatens 2 and 6 at once: whatever O does, X wins two plies later.
    found, _ = find(TTT, [0, 5, 1, 7, 3], num_simulations=400)
    assert float(found.value[0]) < -0.3 and np.asarray(found.q[0])[np.asarray(found.visits[0]) > 0].max() < 0.5
    # One ply earlier X is to move and wins.
    found, _ = find(TTT, [0, 5, 1, 7], num_simulations=400)
    assert float(found.value[0]) > 0.3


def test_nothing_follows_an_end() -> None:
    found, tree = find(TTT, [0, 3, 1, 4], num_simulations=200)
    assert float(found.q[0, 2]) == 1.0 and int(found.visits[0, 2]) > 100
    child = int(tree.children_index[0, 0, 2])
    assert float(tree.children_discounts[0, 0, 2]) == 0.0
    np.testing.assert_array_equal(tree.children_rewards[0, child], 0.0)


def test_no_illegal_move_at_any_depth() -> None:
    for kind in ("puct", "gumbel", "noisy"):
        # Column 0 is full, and 5 moves remain in others at least.
        found, tree = find(C4, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1], kind, num_simulations=200)
        legal = np.asarray(tree.embeddings.legal[0])
        assert not legal[0, 0] and (np.asarray(tree.children_visits[0]) * ~legal).sum() == 0
        assert (np.asarray(found.visits).sum() == 200) and float(found.policy[0, 0]) == 0.0 == float(found.prior[0, 0])


def test_dirichlet_noise_is_on_legal_moves_alone() -> None:
    legal = jnp.zeros((500, 40), bool).at[:, 3:7].set(True)
    log_prior = mcts.log_policy(jnp.zeros((500, 40)), legal)
    noisy = np.exp(np.asarray(mcts.with_dirichlet(jax.random.key(0), log_prior, legal, 0.3, 0.25)))
    np.testing.assert_allclose(noisy.sum(axis=1), 1.0, rtol=1e-5)
    assert noisy[:, :3].max() == 0.0 == noisy[:, 7:].max()
    np.testing.assert_allclose(noisy[:, 3:7].mean(axis=0), 0.25, atol=0.02)
    # Var of one share of Dir(0.3) over four: (1/4)(3/4) / (4 * 0.3 + 1), times 0.25 squared.
    np.testing.assert_allclose(noisy[:, 3:7].var(), 0.25**2 * (3 / 16) / 2.2, rtol=0.15)
    assert noisy[:, 3:7].min() >= 0.75 * 0.25 - 1e-6
    tiny = np.asarray(mcts.with_dirichlet(jax.random.key(0), log_prior, legal, 1e-3, 0.25))
    assert np.isfinite(tiny).all()


def test_it_is_deterministic_and_batches_are_independent() -> None:
    a, _ = find(C4, [3, 3], "noisy")
    b, _ = find(C4, [3, 3], "noisy")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), position(TTT, []), position(TTT, [0, 3, 1, 4]))
    found, _ = _find(TTT, opinionated, "puct", 64, PARAMS, both, jax.random.key(0))
    alone, _ = find(TTT, [0, 3, 1, 4], evaluate=opinionated)
    np.testing.assert_array_equal(found.visits[1], alone.visits[0])


def test_moves_follow_the_temperature() -> None:
    visits = jnp.broadcast_to(jnp.array([0, 10, 30]), (4_000, 3))
    for temperature, share in ((1.0, 0.25), (0.5, 0.1), (0.0, 0.0)):
        chosen = np.asarray(mcts.choose(jax.random.key(0), visits, temperature))
        assert abs((chosen == 1).mean() - share) < 0.025 and (chosen > 0).all()
    each = mcts.choose(jax.random.key(0), visits, jnp.where(jnp.arange(4_000) < 2_000, 0.0, 1.0))
    assert (each[:2_000] == 2).all() and (each[2_000:] == 1).any()


def test_gumbel_spends_its_simulations_by_halving() -> None:
    found, _ = find(TTT, [], "gumbel", num_simulations=32, evaluate=opinionated)
    visits = np.asarray(found.visits[0])
    assert visits.sum() == 32 and (visits > 0).all(), "nine moves are fewer than sixteen"
    np.testing.assert_allclose(float(found.policy.sum()), 1.0, rtol=1e-5)
    # Equation 11: the policy is softmax(log p + sigma(Q)), and every Q is known here.
    sigma = (50.0 + visits.max()) * 1.0 * np.asarray(found.q[0])
    weights = np.asarray(found.prior[0]) * np.exp(sigma - sigma.max())
    np.testing.assert_allclose(np.asarray(found.policy[0]), weights / weights.sum(), rtol=1e-3, atol=1e-6)


def test_without_simulations_the_network_alone_answers() -> None:
    found = mcts.look(TTT, opinionated, PARAMS, jax.random.key(0), position(TTT, [4]))
    assert int(found.visits.sum()) == 0 and float(found.prior[0, 4]) == 0.0
    assert int(found.action[0]) == int(jnp.argmax(found.prior[0])) and float(found.value[0]) == float(found.network_value[0])


def test_the_principal_variation_is_read_from_the_tree() -> None:
    found, tree = find(TTT, [0, 3, 1], num_simulations=200)
    line = np.asarray(mcts.principal_variation(tree, 4))[0]
    assert line[0] == int(found.action[0]) == 2
    assert (mcts.principal_variation(find(TTT, [], num_simulations=1)[1], 4)[0, 1:] == -1).all()


def test_without_mctx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(FlatironsError, match=r"pip install 'flatirons\[games\]'"):
        mcts.demand_mctx()
