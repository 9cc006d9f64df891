"""The page in a real browser: headless Chromium, driven through chromedriver's HTTP protocol. Skipped where they are not installed
(Debian: apt-get install chromium chromium-driver)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import web_standin

pytest.importorskip("pgx", reason="needs flatirons[games]")

from flatirons import envs
from flatirons.run import web

DRIVER, CHROMIUM = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    not (DRIVER and CHROMIUM), reason="needs chromium and chromedriver (apt-get install chromium chromium-driver)"
)

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""What WebDriver calls an element's id."""


class Browser:
    """A WebDriver session, as far as it is needed here."""

    def __init__(self, port: int) -> None:
        self._port, self._session = port, ""
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
        options = {"goog:chromeOptions": {"args": arguments, "binary": CHROMIUM}, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = f"/session/{self._ask('POST', '/session', {'capabilities': {'alwaysMatch': options}})['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=90)
        try:
            connection.request(
                method, self._session + path, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
            )
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        assert not (isinstance(value, dict) and "error" in value), f"{path}: {value.get('message', '')[:400]}"
        return value

    def close(self) -> None:
        self._ask("DELETE", "")

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[ELEMENT]}/click", {})

    def keys(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        return self.run(f"return document.querySelector({selector!r}).textContent")

    def devtools(self, command: str, **parameters: Any) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """Errors in the page's console since the last call. A refused request is logged there too, which is no error of the page."""
        found = self._ask("POST", "/se/log", {"type": "browser"})
        return [
            entry["message"]
            for entry in found
            if entry["level"] == "SEVERE" and "the server responded with a status" not in entry["message"]
        ]

    def wait(self, condition: str, *, seconds: float = 60) -> None:
        """Until a JavaScript expression of the page holds."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"the page never came to {condition}; it says {self.text('#status')!r}"
            time.sleep(0.03)


def wait_for(ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "chromedriver did not start"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    log: list[str] = []
    with subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        assert driver.stdout is not None
        reader = threading.Thread(target=lambda: log.extend(iter(driver.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
        reader.start()
        started = "was started successfully on port "
        wait_for(lambda: any(started in line for line in log))
        port = int(next(line for line in log if started in line).partition(started)[2].strip(" .\n"))
        made = Browser(port)
        yield made
        with contextlib.suppress(AssertionError, OSError):
            made.close()
        driver.terminate()


def serve(name: str) -> tuple[web.Server, web.Opponent]:
    who = web.Opponent(web_standin, web_standin.Config(), envs.make(f"pgx:{name}", 1), {}, who="Stand-in", label="a stand-in")
    server = web.Server(who, port=0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server, who


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    server, who = serve("tic_tac_toe")
    who.prepare()
    yield server.url
    server.shutdown()
    server.server_close()


def fresh(browser: Browser, url: str, side: str = "0") -> None:
    browser.open(f"{url}api/info")  # of the same origin, and without a page that could write there
    browser.run("localStorage.clear(); sessionStorage.clear()")
    browser.open(f"{url}?side={side}")
    browser.wait("game && !thinking && info")
    browser.run("document.getElementById('vary').checked = false")


def play(browser: Browser, cell: int, ply: int) -> None:
    """Click a cell and wait for the answer."""
    browser.click(f'[data-cell="{cell}"]')
    browser.wait(f"game.ply === {ply} && !thinking")


def test_a_whole_game(browser: Browser, page: str, tmp_path: Path) -> None:
    fresh(browser, page)
    assert browser.text("#status") == "Your move" and browser.text("h1") == "Tic-tac-toe"
    play(browser, 4, 2)
    assert browser.run("return pos.cells.join(',')") == "1,,,,0,,,,"
    assert browser.run("return document.querySelectorAll('#pieces > g').length") == 2
    # A cell that is taken: a sentence, and nothing changes.
    browser.click('[data-cell="0"]')
    browser.wait("document.querySelector('#toast.on')")
    assert browser.text("#toast") == "a1 is taken." and browser.run("return game.ply") == 2
    # A hint is shown on the board.
    browser.click("#hint")
    browser.wait("hint && !thinking")
    assert (
        browser.text("#detail") == "Stand-in would play b1." and browser.run("return document.querySelectorAll('#heat .glow').length") == 1
    )
    # Taken back, to the person's last turn.
    browser.click("#undo")
    browser.wait("game.ply === 0 && !thinking")
    assert browser.run("return pos.cells.every(c => c === '')") and browser.run("return document.querySelector('#undo').disabled")
    for ply, cell in ((2, 4), (4, 2), (5, 6)):
        play(browser, cell, ply)
    assert browser.text("#status") == "You win" and browser.text("#detail") == "Three in a row."
    assert browser.run("return document.querySelector('#status').className") == "win"
    assert browser.run("return document.querySelectorAll('#above .glow').length") == 1
    browser.picture(tmp_path / "won.png")
    assert (tmp_path / "won.png").stat().st_size > 10_000
    # And again, the other side: now it begins.
    browser.click("#new")
    browser.wait("game.side === 1 && game.ply === 1 && !thinking")
    assert browser.complaints() == []


def test_keys_looking_back_and_loading_again(browser: Browser, page: str) -> None:
    fresh(browser, page)
    browser.keys("5")
    browser.wait("game.ply === 2 && !thinking")
    browser.keys("9")
    browser.wait("game.ply === 4 && !thinking")
    browser.keys("\ue012")  # left
    browser.wait("at === 3")
    assert browser.text("#status") == "Move 3 of 4"
    browser.click('[data-cell="8"]')  # not from here
    assert browser.run("return game.ply") == 4
    browser.keys("\ue010")  # End
    browser.wait("at === 4")
    browser.open(page)  # loaded again in mid-game
    browser.wait("game && game.ply === 4 && !thinking")
    browser.keys("u")
    browser.wait("game.ply === 2 && !thinking")
    browser.keys("v")
    browser.wait("thought && document.querySelectorAll('#heat text').length === 7")
    browser.keys("v")
    browser.wait("thought && thought.simulations === 16 && document.querySelectorAll('#thoughts tbody tr').length")
    # With the keyboard alone: the board has the focus, arrows move, Enter plays.
    browser.run("cursor = 7; document.getElementById('board').focus()")
    browser.keys("\ue014", "\ue007")  # right, Enter
    browser.wait("game.ply === 4 && pos.cells[8] === '0' && !thinking")
    # Something else moved this game on: the page follows.
    browser.run("ask('undo', {game: game.game, ply: 4})")
    browser.wait("(sync(), game.ply === 2 && !thinking)")
    assert browser.complaints() == []


def test_it_fits_a_phone(browser: Browser, page: str) -> None:
    browser.devtools("Emulation.setDeviceMetricsOverride", width=375, height=720, deviceScaleFactor=2, mobile=True)
    try:
        fresh(browser, page)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        board, undo = (
            browser.run(f"const b = document.getElementById('{name}').getBoundingClientRect(); return [b.width, b.bottom, innerHeight]")
            for name in ("board", "undo")
        )
        assert board[0] > 320 and board[1] < board[2] and undo[1] < undo[2]
    finally:
        browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_pieces_move_and_promote(browser: Browser) -> None:
    server, _ = serve("gardner_chess")
    try:
        fresh(browser, server.url, "both")
        browser.run("ask('new', {side: 'both', position: '4k/P4/5/5/4K w - - 0 1'}).then(found => take(found))")
        browser.wait("pos.cells[5] === 'P'")
        browser.click('[data-cell="5"]')
        browser.wait("selected && selected.start === 5")
        browser.click('[data-cell="0"]')
        browser.wait("document.querySelectorAll('#choice.on button').length === 4")
        browser.click("#choice button:nth-child(2)")
        browser.wait("game.ply === 1 && pos.cells[0] === 'R'")
        assert browser.text("#moves button") == "a5=R+"
        assert browser.complaints() == []
    finally:
        server.shutdown()
        server.server_close()
