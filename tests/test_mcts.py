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
from flatirons.plan import contest, mcts
from flatirons.run import players
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


def most_visited(tree: Any, index: int = 0) -> list[int]:
    """The most visited moves from the root of one tree of the batch."""
    seen = jax.device_get(mcts.edges(tree, tree.num_actions))
    return list(next(iter(players.expected_play(seen.child[index], seen.visits[index]).values())))


SIMULATIONS = 128
"""One number for nearly all searches here, so that few programs are compiled."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _find(game: Any, evaluate: Any, kind: str, num_simulations: int, states: Any, key: Any, before: Any = None) -> Any:
    if kind == "gumbel":
        return mcts.gumbel_search(game, evaluate, PARAMS, key, states, num_simulations=num_simulations, scale=0.0, before=before)
    noise = (0.3, 0.25) if kind == "noisy" else None
    return mcts.search(game, evaluate, PARAMS, key, states, num_simulations=num_simulations, noise=noise, before=before)


# X (who begins) has 0 and 1 or the like; the last number is the only right move. "fork": nothing helps any more.
POSITIONS: dict[Any, dict[str, tuple[list[int], int]]] = {
    TTT: {
        "win, first": ([0, 3, 1, 4], 2),
        "win, second": ([0, 3, 1, 4, 8], 5),
        "block, first": ([8, 0, 3, 1], 2),
        "block, second": ([0, 4, 1], 2),
        "fork": ([0, 5, 1, 7, 3], -1),
        "before the fork": ([0, 5, 1, 7], 2),
    },
    C4: {
        "win, first": ([0, 6, 0, 6, 0, 6], 0),
        "win, second": ([0, 6, 0, 6, 1, 6, 2], 6),
        "block, first": ([6, 0, 5, 0, 6, 0], 0),
        "block, second": ([0, 6, 0, 6, 0], 0),
        "full column": ([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], -1),
    },
}


@functools.cache
def _all_of(game: Any, kind: str) -> Any:
    """The searches of all of a game's positions, as one batch: an Analysis and a Tree."""
    states = [position(game, actions) for actions, _ in POSITIONS[game].values()]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *states)
    return jax.device_get(_find(game, blank, kind, SIMULATIONS, both, jax.random.key(0)))


def find(game: Any, name: str, kind: str = "puct") -> Any:
    """The Analysis and the Tree of one position, without a batch axis."""
    index = list(POSITIONS[game]).index(name)
    return jax.tree.map(lambda x: x[index], _all_of(game, kind))


# ---------------------------------------------------------------------------------------- against a plain program


class Node:
    """A node of the reference: N, W, P as the papers have them."""

    def __init__(self, board: tuple[int, ...]):
        self.board, self.children, self.visits, self.total = board, {}, 0, 0.0
        self.prior: dict[int, float] = {}


LINES = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]


def reference(simulations: int, root: Node | None = None) -> Node:
    """AlphaZero's search on an empty tic-tac-toe board, or from a node of an earlier one, with dictionaries. Boards are seen by the player
    to move: 1 mine, -1 theirs."""
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

    if root is None:
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
    return root


def assert_same(found: Any, index: int, root: Node) -> None:
    """The Analysis' N and Q are the node's."""
    children = [root.children.get(a) for a in range(9)]
    np.testing.assert_array_equal(found.visits[index], [child.visits if child else 0 for child in children])
    np.testing.assert_allclose(found.q[index], [-child.total / child.visits if child else 0.0 for child in children], atol=1e-5)


def test_puct_equals_the_pseudocode() -> None:
    # In a batch, beside another position.
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), position(TTT, [0, 3, 1, 4]), position(TTT, []))
    found, tree = jax.device_get(_find(TTT, opinionated, "puct", 64, both, jax.random.key(0)))
    assert_same(found, 1, reference(64))
    np.testing.assert_allclose(found.total, found.visits * found.q)
    np.testing.assert_allclose(found.policy, found.visits / 64.0)
    assert int(found.action[1]) == int(np.argmax(found.visits[1]))
    line = most_visited(tree, 1)
    assert line[0] == found.action[1] and len(line) >= 2


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
    found, _ = _find(TTT, evaluate, "puct", 3, two_left, jax.random.key(0))
    np.testing.assert_array_equal(found.visits[0, 7:], [1, 2])
    # After the second visit of move 1 the draw behind it has halved its mean.
    np.testing.assert_allclose(found.q[0, 7:], [-0.4, 0.3], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- probes

KINDS = pytest.mark.parametrize("kind", ["puct", "gumbel"])
GAMES = pytest.mark.parametrize("game", [TTT, C4], ids=["tic-tac-toe", "connect four"])


@KINDS
@GAMES
def test_it_takes_a_win(game: Any, kind: str) -> None:
    for name in ("win, first", "win, second"):
        found, _ = find(game, name, kind)
        right = POSITIONS[game][name][1]
        assert found.action == right and found.q[right] == 1.0 and found.q.argmax() == right and found.policy.argmax() == right


@KINDS
@GAMES
def test_it_blocks_a_win(game: Any, kind: str) -> None:
    for name in ("block, first", "block, second"):
        found, _ = find(game, name, kind)
        right = POSITIONS[game][name][1]
        assert found.action == right and found.policy.argmax() == right
        assert np.where(found.visits > 0, found.q, 1.0).min() < -0.1, "what does not block loses"


def test_a_win_in_one_is_seen_without_the_network() -> None:
    seeing = mcts.seeing_wins(C4, blank)
    mine, theirs = position(C4, [0, 1, 0, 1, 0, 1]), position(C4, [0, 1, 0, 1, 0, 1, 6])
    full = position(C4, [0, 1, 0, 0, 1, 0, 1, 1, 0, 0])  # the first column is full: stones there are not legal, and win nothing
    ended = position(C4, [0, 1, 0, 1, 0, 1, 0])
    states = jax.tree.map(lambda *x: jnp.concatenate(x), mine, theirs, full, ended)
    found = jax.jit(lambda states: seeing(None, jax.random.key(0), states))(states)
    np.testing.assert_array_equal(found.value, [1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(jnp.argmax(found.logits, axis=1)[:2], [0, 1])
    assert float(jnp.min(found.logits[:2])) == mcts.UNTHINKABLE and not np.any(np.asarray(found.logits[2:]))


@jax.jit
def _seen(states: Any) -> Any:
    return mcts.seeing_wins(C4, blank, replies=True)(None, jax.random.key(0), states)


def test_replies_that_win_are_seen_without_the_network() -> None:
    # 0 has three in a row with both ends open; three with one end open; three in a row that is 1's turn to complete.
    double = position(C4, [2, 6, 3, 6, 4])
    single = position(C4, [0, 6, 1, 6, 2])
    own = position(C4, [0, 6, 1, 6, 2, 6, 5])
    calm = position(C4, [3])
    ended = position(C4, [0, 1, 0, 1, 0, 1, 0])
    states = jax.tree.map(lambda *x: jnp.concatenate(x), double, single, own, calm, ended)
    found = _seen(states)
    np.testing.assert_array_equal(found.value, [-1.0, 0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(found.logits[1]) == 0.0), [3])  # the block alone is thought of
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(found.logits[2]) == 0.0), [6])
    assert not np.any(np.asarray(found.logits[3:]))


@pytest.mark.parametrize("plies", [14, 28])
def test_replies_agree_with_playing_them_out(plies: int) -> None:
    states = jax.jit(jax.vmap(C4.init))(jax.random.split(jax.random.key(plies), 24))
    step, play, may = jax.jit(jax.vmap(C4.step, in_axes=(None, 0, 0))), jax.jit(C4.step), jax.jit(C4.legal)
    drawn = jax.jit(lambda key, states: contest.random_move(C4, key, states))
    for ply in range(plies):
        states = step(jax.random.key(0), states, drawn(jax.random.key(ply), states))[0]
    found = _seen(states)
    legal = np.asarray(jax.vmap(C4.legal)(states))
    going = ~np.asarray(states.terminated)
    assert going.sum() > 2
    for i in np.flatnonzero(going):
        one = jax.tree.map(lambda x, i=i: x[i], states)
        wins, safe = [], []
        for move in np.flatnonzero(legal[i]):
            after, reward, over = play(jax.random.key(0), one, move)
            wins += [move] if over and reward > 0 else []
            replies = [] if over else np.flatnonzero(np.asarray(may(after)))
            ends = [play(jax.random.key(0), after, reply) for reply in replies]
            safe += [] if any(bool(end[2]) and float(end[1]) > 0 for end in ends) else [move]
        value = 1.0 if wins else 0.0 if safe else -1.0
        assert float(found.value[i]) == value, (i, wins, safe)
        thought_of = np.flatnonzero((np.asarray(found.logits[i]) == 0.0) & legal[i]).tolist()
        assert thought_of == (wins or safe or np.flatnonzero(legal[i]).tolist())


def test_signs_turn_with_every_ply() -> None:
    # X threatens 2 and 6 at once: whatever O does, X wins.
    found, _ = find(TTT, "fork")
    assert found.value < -0.3 and found.q[found.visits > 0].max() < 0.0
    found, _ = find(TTT, "before the fork")
    assert found.value > 0.3


def test_nothing_follows_an_end() -> None:
    found, tree = find(TTT, "win, first")
    assert found.q[2] == 1.0 and found.visits[2] > SIMULATIONS // 2
    child = tree.children_index[0, 2]
    assert tree.children_discounts[0, 2] == 0.0
    np.testing.assert_array_equal(tree.children_rewards[child], 0.0)


@pytest.mark.parametrize("kind", ["puct", "gumbel", "noisy"])
def test_no_illegal_move_at_any_depth(kind: str) -> None:
    found, tree = find(C4, "full column", kind)
    legal = tree.embeddings.legal
    assert not legal[0, 0] and (tree.children_visits * ~legal).sum() == 0 and (~legal[tree.node_visits > 0]).any()
    assert found.visits.sum() == SIMULATIONS and found.policy[0] == 0.0 == found.prior[0]


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


def test_it_is_deterministic() -> None:
    again = _all_of.__wrapped__(C4, "noisy")
    jax.tree.map(np.testing.assert_array_equal, again, _all_of(C4, "noisy"))


def test_moves_follow_the_temperature() -> None:
    visits = jnp.broadcast_to(jnp.array([0, 10, 30]), (4_000, 3))
    for temperature, share in ((1.0, 0.25), (0.5, 0.1), (0.0, 0.0)):
        chosen = np.asarray(mcts.choose(jax.random.key(0), visits, temperature))
        assert abs((chosen == 1).mean() - share) < 0.025 and (chosen > 0).all()
    each = mcts.choose(jax.random.key(0), visits, jnp.where(jnp.arange(4_000) < 2_000, 0.0, 1.0))
    assert (each[:2_000] == 2).all() and (each[2_000:] == 1).any()


def test_gumbel_spends_its_simulations_by_halving() -> None:
    found, _ = find(TTT, "block, second", "gumbel")
    assert found.visits.sum() == SIMULATIONS and (found.visits[found.legal] > 0).all(), "six moves are fewer than sixteen"
    # Equation 11: the policy is softmax(log p + sigma(Q)), and every Q is known here.
    sigma = (50.0 + found.visits.max()) * found.q
    weights = found.prior * np.exp(sigma - sigma.max())
    np.testing.assert_allclose(found.policy, weights / weights.sum(), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.value, (found.policy * found.q).sum(), rtol=1e-3)


def test_what_was_found_is_gone_on_from() -> None:
    """Two plies later the search is the same plain program, called on the node that the game has come to."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), position(TTT, []), position(TTT, [8]))
    _, tree = _find(TTT, opinionated, "puct", 64, both, jax.random.key(0))
    first, reply = most_visited(tree)[:2]
    now = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), position(TTT, [first, reply]), position(TTT, [3]))
    found, grown = jax.device_get(_find(TTT, opinionated, "puct", 64, now, jax.random.key(0), tree))
    node = reference(64).children[first].children[reply]
    assert node.visits > 20
    assert_same(found, 0, reference(64, node))
    assert found.visits[0].sum() == node.visits - 1
    # The other game came to where the search had not been: begun anew.
    anew, _ = jax.device_get(_find(TTT, opinionated, "puct", 64, now, jax.random.key(0)))
    np.testing.assert_array_equal(found.visits[1], anew.visits[1])
    np.testing.assert_array_equal(found.q[1], anew.q[1])
    np.testing.assert_array_equal(found.prior, anew.prior)
    assert_whole(grown)


def assert_whole(tree: Any) -> None:
    """Parents come before their children and know them; an edge was tried where there is a child."""
    for b, (parents, actions) in enumerate(zip(tree.parents, tree.action_from_parent, strict=True)):
        nodes = np.flatnonzero(tree.node_visits[b] > 0)
        assert nodes[0] == 0 and parents[0] == -1
        assert (parents[nodes[1:]] < nodes[1:]).all() and (parents[nodes[1:]] >= 0).all()
        np.testing.assert_array_equal(tree.children_index[b, parents[nodes[1:]], actions[nodes[1:]]], nodes[1:])
        np.testing.assert_array_equal(tree.children_index[b, nodes] >= 0, tree.children_visits[b, nodes] > 0)
        assert (tree.children_index[b, nodes] >= 0).sum() == len(nodes) - 1


@pytest.mark.parametrize("kind", ["puct", "gumbel"])
def test_no_more_is_kept_than_there_is_room_for(kind: str) -> None:
    begin = position(TTT, [4])
    _, tree = _find(TTT, blank, kind, SIMULATIONS, begin, jax.random.key(0))
    reply = most_visited(tree)[0]
    found, grown = jax.device_get(_find(TTT, blank, kind, 8, position(TTT, [4, reply]), jax.random.key(0), tree))
    known = int(tree.node_visits[0, tree.children_index[0, 0, reply]])
    assert known > 9, "more than there is room for"
    assert grown.node_visits.shape == (1, 17) and (grown.node_visits > 0).sum() <= 17
    # What was tried and still has its node, and eight more.
    assert 8 <= found.visits.sum() <= known - 1 + 8 and (found.visits[~found.legal] == 0).all()
    assert_whole(grown)
    # From a search of nobody it is as without one.
    nobody = mcts.unsearched(begin, 9, 8)
    again, first = (_find(TTT, blank, kind, 8, begin, jax.random.key(0), *before) for before in ((nobody,), ()))
    jax.tree.map(np.testing.assert_array_equal, again[0], first[0])
    assert jax.tree.map(jnp.shape, again[1].replace(extra_data=None)) == jax.tree.map(jnp.shape, nobody)


def test_halving_goes_by_the_new_simulations() -> None:
    _, tree = _find(TTT, opinionated, "gumbel", SIMULATIONS, position(TTT, []), jax.random.key(0))
    line = most_visited(tree)[:2]
    now = position(TTT, line)
    found, grown = jax.device_get(_find(TTT, opinionated, "gumbel", SIMULATIONS, now, jax.random.key(0), tree))
    before = grown.extra_data.visits[0]
    assert before.sum() > 0 and (found.visits[0] - before).sum() == SIMULATIONS
    assert ((found.visits[0] - before)[found.legal[0]] > 0).all(), "seven moves are fewer than sixteen: each is tried again"


def test_without_simulations_the_network_alone_answers() -> None:
    found = mcts.look(TTT, opinionated, PARAMS, jax.random.key(0), position(TTT, [4]))
    assert int(found.visits.sum()) == 0 and float(found.prior[0, 4]) == 0.0
    assert int(found.action[0]) == int(jnp.argmax(found.prior[0])) and float(found.value[0]) == float(found.network_value[0])


def test_without_mctx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mctx", None)
    with pytest.raises(FlatironsError, match=r"pip install 'flatirons\[games\]'"):
        mcts.demand_mctx()
