"""The page's server without a browser: whole games, taking back, bad requests, two pages at once."""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import web_standin

pytest.importorskip("pgx", reason="needs flatirons[games]")

from flatirons import envs, types
from flatirons.envs import games, notation
from flatirons.plan import uct
from flatirons.run import boards, cli, web
from flatirons.types import FlatironsError


def opponent(name: str, system: Any = web_standin, **options: Any) -> web.Opponent:
    return web.Opponent(system, web_standin.Config(), envs.make(f"pgx:{name}", 1), {}, label="a stand-in", **options)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, web.Server]]:
    made = {}
    for name in ("tic_tac_toe", "connect_four"):
        server = web.Server(opponent(name), port=0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        made[name] = server
    yield made
    for server in made.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def ttt(servers: dict[str, web.Server]) -> web.Server:
    return servers["tic_tac_toe"]


def send(
    server: web.Server, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, raw: bytes | None = None
) -> Any:
    """(status, answer) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else text.decode()
    finally:
        connection.close()


def ask(server: web.Server, what: str, **body: Any) -> Any:
    status, answer = send(server, "POST", f"/api/{what}", body)
    assert status == 200, answer
    return answer


def refused(server: web.Server, what: str, **body: Any) -> tuple[int, str]:
    status, answer = send(server, "POST", f"/api/{what}", body)
    assert status != 200, answer
    return status, answer["error"]


def test_the_page_is_one_file_and_asks_for_nothing_else(ttt: web.Server) -> None:
    status, page = send(ttt, "GET", "/")
    assert status == 200 and page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page and "@import" not in page
    status, info = send(ttt, "GET", "/api/info")
    assert status == 200 and info["kind"] == "marks" and info["simulations"] == 16 and 16 in info["choices"] and 0 in info["choices"]


def test_a_whole_game_that_the_person_wins(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)
    for mine, its in ((4, 0), (2, 1), (6, None)):  # it always takes the first free cell
        game = ask(ttt, "move", game=game["game"], ply=game["ply"], action=mine)
        if its is not None:
            game = ask(ttt, "engine", game=game["game"], ply=game["ply"], simulations=16)
            assert game["moves"][-1]["action"] == its and game["thought"]["at"] == game["ply"] - 1
    assert game["over"] and game["position"]["outcome"] == 1 and game["position"]["ending"] == "three in a row"
    assert game["position"]["line"] == [2, 4, 6] and game["position"]["legal"] == [] and game["values"][-1] == 1
    for what in ("move", "engine", "hint", "resign"):
        status, sentence = refused(ttt, what, game=game["game"], ply=game["ply"], action=3)
        assert status == 400 and "over" in sentence


def test_an_illegal_move_is_named_and_changes_nothing(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)
    game = ask(ttt, "move", game=game["game"], ply=0, action=4)
    for wrong, word in (
        ({"action": 4}, "b2"),
        ({"action": 99}, "99"),
        ({"move": "b2"}, "b2"),
        ({"move": "z9"}, "z9"),
        ({"action": "b"}, "'b'"),
        ({}, "None"),
    ):
        status, sentence = refused(ttt, "move", game=game["game"], ply=1, **wrong)
        assert status == 400 and word in sentence and sentence.endswith((".", "unchanged")), sentence
    assert ask(ttt, "state", game=game["game"])["position"] == game["position"]
    assert ask(ttt, "move", game=game["game"], ply=1, move="A1")["moves"][-1]["text"] == "a1"


def test_taking_back_goes_to_the_persons_turn(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)
    assert refused(ttt, "undo", game=game["game"], ply=0)[0] == 400
    for cell in (4, 8):
        game = ask(ttt, "move", game=game["game"], ply=game["ply"], action=cell)
        game = ask(ttt, "engine", game=game["game"], ply=game["ply"], simulations=0)
    back = ask(ttt, "undo", game=game["game"], ply=4)
    assert back["ply"] == 2 and back["position"]["player"] == 0 and [move["action"] for move in back["moves"]] == [4, 0]
    assert ask(ttt, "undo", game=game["game"], ply=2)["ply"] == 0
    # As the second player there is nothing to take back after the run's first move.
    second = ask(ttt, "new", side=1)
    second = ask(ttt, "engine", game=second["game"], ply=0, simulations=0)
    assert refused(ttt, "undo", game=second["game"], ply=1)[0] == 400
    both = ask(ttt, "side", game=second["game"], side="both")
    assert both["side"] == "both" and ask(ttt, "undo", game=second["game"], ply=1)["ply"] == 0


def test_the_play_that_is_expected_is_told_in_words() -> None:
    def tree(*asked: Any, num_simulations: int) -> Any:
        found = web_standin.analyse(*asked, num_simulations=num_simulations)
        # After e4 (its action is found below) e5, then nothing is known.
        child = jnp.full((1, 3, found.visits.shape[1]), -1).at[0, 0, moves[0]].set(1).at[0, 1, moves[1]].set(2)
        visits = jnp.zeros_like(child).at[0, 0, moves[0]].set(9).at[0, 1, moves[1]].set(5)
        return found, uct.Tree(child, visits, 0.0 * visits)

    played = notation.table(games.make("gardner_chess"), "startpos moves e2e3 d4e3")
    moves = played.actions
    system = SimpleNamespace(analyse=web_standin.analyse, analyse_tree=tree, __name__="standin")
    table = web.Table(opponent("gardner_chess", system))
    game = table.new({"side": 0})["game"]
    rows = table.analysis({"game": game, "simulations": 16})["thought"]["moves"]
    assert [row["line"] for row in rows if row["line"]] == [["e3", "dxe3"]]
    assert not any(row["line"] for row in table.analysis({"game": game, "simulations": 0})["thought"]["moves"])


def test_hint_analysis_and_looking_back(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)
    hint = ask(ttt, "hint", game=game["game"], ply=0, simulations=16)
    assert hint["move"]["text"] == "a1" and hint["thought"]["moves"][0]["visits"] == 16
    seen = ask(ttt, "analysis", game=game["game"], simulations=0)["thought"]
    assert seen["value"] == 0.125 and len(seen["moves"]) == 9 and seen["moves"][0]["value"] is None
    assert sum(move["prior"] for move in seen["moves"]) == pytest.approx(1, abs=1e-3)
    game = ask(ttt, "move", game=game["game"], ply=0, action=0)
    # Values are the first player's, whoever is to move; the deepest search counts.
    assert ask(ttt, "analysis", game=game["game"], simulations=0)["values"] == [0.25, -0.125]
    assert ask(ttt, "analysis", game=game["game"], simulations=16)["values"] == [0.25, -0.25]
    earlier = ask(ttt, "state", game=game["game"], at=0)
    assert earlier["position"]["at"] == 0 and len(earlier["position"]["legal"]) == 9 and earlier["ply"] == 1
    assert refused(ttt, "state", game=game["game"], at=2)[0] == 400


def test_two_pages_and_one_that_is_behind(ttt: web.Server) -> None:
    one, other = ask(ttt, "new", side=0), ask(ttt, "new", side=1)
    ask(ttt, "move", game=one["game"], ply=0, action=0)
    assert ask(ttt, "state", game=other["game"])["ply"] == 0  # games do not touch
    status, sentence = refused(ttt, "move", game=one["game"], ply=0, action=1)
    assert status == 409 and "gone on elsewhere" in sentence
    assert ask(ttt, "state", game=one["game"])["ply"] == 1
    # Loaded again in mid-game, or after the server was: the game is brought back by its moves.
    again = ask(ttt, "new", side=0, moves=[move["action"] for move in ask(ttt, "state", game=one["game"])["moves"]])
    assert again["ply"] == 1 and again["game"] != one["game"]
    assert refused(ttt, "new", side=0, moves=[0, 0])[0] == 400 and refused(ttt, "new", moves=[0] * 100)[0] == 400
    assert refused(ttt, "state", game="no such game")[0] == 404


def test_a_move_taken_back_while_it_thinks_is_not_answered() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(web.Opponent):
        def think(self, state: Any, simulations: int) -> web.Thought:
            begun.set()
            assert go_on.wait(20)
            return super().think(state, simulations)

    table = web.Table(Slow(web_standin, web_standin.Config(), envs.make("pgx:tic_tac_toe", 1), {}))
    game = table.new({"side": 0})["game"]
    table.move({"game": game, "ply": 0, "action": 0})
    errors = []

    def engine() -> None:
        try:
            table.engine({"game": game, "ply": 1, "simulations": 0})
        except web.Refusal as refusal:
            errors.append(refusal.status)

    thread = threading.Thread(target=engine)
    thread.start()
    assert begun.wait(20)
    assert table.undo({"game": game, "ply": 1})["ply"] == 0
    table.move({"game": game, "ply": 0, "action": 4})  # as many moves as it knows of, and others
    go_on.set()
    thread.join(20)
    assert errors == [409] and [move["action"] for move in table.state({"game": game})["moves"]] == [4]


def test_bad_requests_get_a_sentence(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)["game"]
    for raw in (b"", b"{", b"[1]", b"\xff\xfe", b"[" * 5000, b"nul"):
        status, answer = send(ttt, "POST", "/api/new", raw=raw)
        assert status == 400 and answer["error"].endswith("."), raw
    for body in ({"side": 2}, {"side": True}, {"side": None}, {"side": [0]}, {"moves": 3}, {"position": 3}, {"position": "z9"}):
        assert refused(ttt, "new", **body)[0] == 400
    for ply in (None, "0", -1, 1.5, True):
        assert refused(ttt, "move", game=game, ply=ply, action=0)[0] == 400
    for simulations in (-1, 17, "16", None, True, 1e9, [16]):
        status, sentence = refused(ttt, "engine", game=game, ply=0, simulations=simulations)
        assert status == 400 and "16" in sentence
    assert (
        send(ttt, "GET", "/api/nothing")[0] == 404
        and send(ttt, "POST", "/api/nothing", {})[0] == 404
        and send(ttt, "GET", "/../cli.py")[0] == 404
    )
    assert send(ttt, "POST", "/api/new", raw=b"x" * 70_000)[0] == 413
    assert send(ttt, "POST", "/api/new", {}, headers={"Content-Length": "many"})[0] == 411
    # Pages of other sites: a form cannot send JSON, and a name that they point here is not ours.
    assert send(ttt, "POST", "/api/new", {}, headers={"Content-Type": "text/plain"})[0] == 415
    assert send(ttt, "GET", "/api/info", headers={"Host": "evil.example:80"})[0] == 403
    assert send(ttt, "GET", "/api/info", headers={"Host": "localhost:80"})[0] == 200
    assert ask(ttt, "state", game=game)["ply"] == 0


def test_a_fault_inside_is_a_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    def analyse(*_: Any, **__: Any) -> Any:
        raise ValueError("broken")

    with web.Server(opponent("tic_tac_toe", SimpleNamespace(analyse=analyse, __name__="broken")), port=0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        game = ask(server, "new")
        status, answer = send(server, "POST", "/api/engine", {"game": game["game"], "ply": 0})
        assert status == 500 and "ValueError" in answer["error"]
        assert ask(server, "state", game=game["game"])["ply"] == 0
        server.shutdown()
    assert "broken" in capsys.readouterr().err


def test_resigning_and_watching(ttt: web.Server) -> None:
    game = ask(ttt, "new", side=0)
    over = ask(ttt, "resign", game=game["game"], ply=0)
    assert over["over"] and over["position"]["outcome"] == -1 and over["position"]["ending"] == "resignation"
    assert over["text"] == "" and ask(ttt, "new", side="none", position="a1")["text"] == "a1"
    again = ask(ttt, "new", side=0, moves=[-1])
    assert again["over"] and again["position"]["ending"] == "resignation"
    assert ask(ttt, "undo", game=game["game"], ply=1)["over"] is False
    watched = ask(ttt, "new", side="none")
    while not watched["over"]:
        watched = ask(ttt, "engine", game=watched["game"], ply=watched["ply"], simulations=0, vary=True)
    assert [move["action"] for move in watched["moves"]] == [0, 1, 2, 3, 4, 5, 6]
    assert watched["position"]["line"] == [2, 4, 6]


def test_connect_four(servers: dict[str, web.Server]) -> None:
    server = servers["connect_four"]
    game = ask(server, "new", side=1, position="1 1 2")
    assert [move["to"] for move in game["moves"]] == [35, 28, 36] and game["position"]["player"] == 1
    for action in (1, 2, 2, 3):
        game = ask(server, "move", game=game["game"], ply=game["ply"], action=action)
    assert game["over"] and game["position"]["outcome"] == 1 and game["position"]["line"] == [35, 36, 37, 38]
    full = ask(server, "new", side="both", moves=[0, 0, 0, 0, 0, 0])
    status, sentence = refused(server, "move", game=full["game"], ply=6, action=0)
    assert status == 400 and "'1'" in sentence


def test_a_position_beyond_a_draw_that_nobody_claimed() -> None:
    # Two knights to and fro: the third occurrence, and a move after it.
    table, drawn = web.Table(opponent("gardner_chess")), "startpos moves b1c3 b5a3 c3b1 a3b5 b1c3 b5a3 c3b1 a3b5"
    view = table.new({"position": f"{drawn} e2e3"})
    assert view["ply"] == 9 and not view["over"] and view["moves"][-1]["text"] == "e3"
    # A page that brings its game back says where it began and every move.
    back = table.new({"position": view["start"], "moves": [move["action"] for move in view["moves"]]})
    assert back["moves"] == view["moves"] and back["text"] == view["text"]
    with pytest.raises(web.Refusal, match="the game is over"):
        table.move({"game": table.new({"position": drawn})["game"], "ply": 8, "move": "e2e3"})


def test_games_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_GAMES", 2)
    table = web.Table(opponent("tic_tac_toe"))
    first, second = table.new({})["game"], table.new({})["game"]
    table.state({"game": first})
    table.new({})
    assert table.state({"game": first})["ply"] == 0
    with pytest.raises(web.Refusal, match="not known"):
        table.state({"game": second})


def test_varied_moves_are_nearly_as_good() -> None:
    thought = web.Thought(100, 0, np.zeros(5), np.array([40, 30, 20, 10, 0]), np.array([0.5, 0.48, 0.1, 0.49, 0.9]), 0.5, 0.5)
    legal = np.array([True, True, True, True, False])
    assert {web.choose(thought, legal, vary=True, seed=seed) for seed in range(50)} == {0, 1}
    assert web.choose(thought, legal, vary=False, seed=0) == 0
    alone = dataclasses.replace(thought, visits=np.zeros(5, int))
    assert web.choose(alone, legal, vary=True, seed=3) == 0


# Chess, shogi and the large Go take pgx half a minute to load, and are described by the same lines as the small ones.
@pytest.mark.parametrize("name", [name for name in games.GAMES if name not in ("chess", "shogi", "go_19x19")])
def test_every_game_is_described(name: str) -> None:
    game = games.make(name)
    state = jax.device_get(game.init(jax.random.key(0)))
    look, now = boards.LOOKS[name], boards.position(game, state)
    assert len(now.cells) == look.rows * look.cols == len(set(boards.names(game))) and now.player == 0
    legal = boards.moves(game, state)
    assert len(legal) == int(np.sum(state.legal)) and len({move.text for move in legal}) == len(legal)
    for move in legal:
        if move.start is not None:
            assert now.cells[move.start].isupper() and not now.cells[move.to or 0].isupper()
        elif move.to is not None:
            assert not now.cells[move.to]
            assert move.text == boards.names(game)[move.to] or look.kind == "drop"
    assert boards.check(game, now) is None and boards.line(game, now) == ()
    json.dumps([move._asdict() for move in legal] + [boards.pieces(game), now.hands])


def test_every_game_has_a_look() -> None:
    assert boards.LOOKS.keys() == games.GAMES.keys()
    for name, look in boards.LOOKS.items():
        assert (look.rows, look.cols) == games.GAMES[name][:2]
        assert len(set(boards.names(games.Game(name)))) == look.rows * look.cols


def test_how_go_is_counted() -> None:
    look = boards.Look("", "go", 4, 4, ("", ""))
    cells = tuple("" if c == "." else "01"["XO".index(c)] for c in ".X.OXX.OOOOO....")
    assert boards.area(look, boards.Position(cells, 0, ({}, {}))) == (4, 10)


def test_a_winning_path_of_hex() -> None:
    game = games.make("hex")
    cells = [""] * 121
    for row in range(11):
        cells[row * 11 + 5] = "0"
    assert boards.line(game, boards.Position(tuple(cells), 1, ({}, {}))) == tuple(row * 11 + 5 for row in range(10, -1, -1))
    cells[60] = "1"
    assert boards.line(game, boards.Position(tuple(cells), 1, ({}, {}))) == ()


def test_what_cannot_be_played_is_said(ttt: web.Server) -> None:
    with pytest.raises(FlatironsError, match="no search"):
        opponent("tic_tac_toe", SimpleNamespace(__name__="flatirons.systems.dqn"))
    with pytest.raises(FlatironsError, match="is none"):
        web.Opponent(web_standin, web_standin.Config(), envs.make("jax:CartPole-v1", 1), {})
    with pytest.raises(FlatironsError, match="--port"):
        web.Server(opponent("tic_tac_toe"), port=ttt.server_address[1])
    with pytest.raises(FlatironsError, match="--port"):
        web.Server(opponent("tic_tac_toe"), port=99_999)


def test_the_command_serves_until_it_is_stopped(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"env": "pgx:tic-tac-toe"}))
    monkeypatch.setattr(web, "opponent", lambda path, simulations, seed: opponent("tic_tac_toe", simulations=simulations, seed=seed))
    monkeypatch.setattr(web.Opponent, "prepare", lambda self: None)
    monkeypatch.setattr(web.Server, "serve_forever", lambda self, poll_interval: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.run("play", [str(tmp_path), "--port", "0", "--no-browser", "--simulations", "7"]) == 0
    assert "Tic-tac-toe against a stand-in: http://127.0.0.1:" in capsys.readouterr().out
    assert cli.run("play", [str(tmp_path), "--video", "x.mp4"]) == 2
    assert cli.run("play", [str(tmp_path), "--best"]) == 2
    (tmp_path / "config.json").write_text(json.dumps({"env": "CartPole-v1"}))
    assert cli.run("play", [str(tmp_path), "--port", "0"]) == 2
    assert "board games" in capsys.readouterr().err


def test_people_are_played_with_the_search_that_is_for_them() -> None:
    def who(play_simulations: int, **options: Any) -> web.Opponent:
        config = SimpleNamespace(num_simulations=16, play_simulations=play_simulations)
        return web.Opponent(web_standin, config, envs.make("pgx:tic_tac_toe", 1), {}, **options)

    assert who(48).simulations == 48 and 48 in who(48).choices and 16 not in who(48).choices
    assert who(0).simulations == 16 and who(48, simulations=7).simulations == 7


@types.config
class PolicyNetwork:
    channels: int = 16


def test_a_policy_network_is_played_without_a_search() -> None:
    asked = []

    def analyse(*inputs: Any, num_simulations: int) -> Any:
        asked.append(num_simulations)
        if num_simulations:
            raise FlatironsError("a policy network plays without a search")
        return web_standin.analyse(*inputs, num_simulations=0)

    system, task = SimpleNamespace(analyse=analyse, __name__="flatirons.systems.alphago.sl"), envs.make("pgx:tic_tac_toe", 1)
    who = web.Opponent(system, PolicyNetwork(), task, {})
    who.prepare()
    assert who.simulations == 0 and who.choices == [0] and who.ready == {0} and not who.preparing
    table = web.Table(who)
    game = table.new({"side": 1})
    moved = table.engine({"game": game["game"], "ply": 0})
    assert moved["moves"][0]["action"] == 0 and moved["thought"]["simulations"] == 0 and set(asked) == {0}
    with pytest.raises(web.Refusal, match="choose one of 0"):
        table.hint({"game": game["game"], "ply": 1, "simulations": 100})
    with pytest.raises(FlatironsError, match=r"simulations is 100, .* is a policy network"):
        web.Opponent(system, PolicyNetwork(), task, {}, simulations=100)
    assert web.Opponent(system, PolicyNetwork(), task, {}, simulations=0).choices == [0]


def test_the_search_is_compiled_once_and_beforehand() -> None:
    traced = []

    def analyse(*inputs: Any, num_simulations: int) -> Any:
        traced.append(num_simulations)
        return web_standin.analyse(*inputs, num_simulations=num_simulations)

    who = opponent("tic_tac_toe", SimpleNamespace(analyse=analyse, __name__="standin"))
    who.prepare()
    assert traced == [0, 16] and who.ready == {0, 16} and not who.preparing
    start = notation.table(who.game, "b2").state
    began = time.perf_counter()
    assert who.think(start, 16).action == 0 and who.think(start, 0).action == 0
    assert traced == [0, 16] and time.perf_counter() - began < 5
