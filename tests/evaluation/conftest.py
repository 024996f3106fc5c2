"""A headless Chromium to look at pages with, told what to do through its DevTools protocol."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

import pytest

_PATIENCE_SECONDS = 120  # of a busy machine
# Now and then a new tab never answers on a busy machine: another one does.
_TAB_SECONDS, _TABS = 30, 4
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "ArrowRight": (39, "")}


class Silent(AssertionError):
    """Chromium says nothing."""


class Page:
    """A tab."""

    def __init__(self, browser: "Browser"):
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            browser.call(f"{domain}.enable", self._session, patience=_TAB_SECONDS)

    def call(self, method: str, **params):
        return self._browser.call(method, self._session, **params)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def open(self, url: str) -> None:
        """Goes to an address and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def reload(self) -> None:
        """Loads the page again and waits until it is there."""
        self.evaluate("window.before = true")
        self.call("Page.reload")
        self.wait("!window.before && document.readyState === 'complete'")

    def evaluate(self, script: str):
        """The value of an expression, JSON-ready; of a promise, what it comes to."""
        told = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until an expression is true."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < until, f"never true: {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Clicks with the mouse in the middle of an element, as soon as it can be clicked."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found}?.checkVisibility() && !{found}.matches(':disabled')")
        x, y = self.evaluate(
            f"{found}.scrollIntoView({{block: 'center'}}), (box => [box.x + box.width / 2, "
            f"box.y + box.height / 2])({found}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses and releases a key: a letter, a digit, " ", or one of `_KEYS`."""
        code, text = _KEYS.get(key) or (ord(key.upper()), key)
        named = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self) -> bytes:
        """The page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def events(self, method: str) -> list[dict]:
        """What the page told of one kind so far."""
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == method
        ]


class Browser:
    """A Chromium of its own, with an empty profile."""

    def __init__(self, program: str, profile: os.PathLike):
        # Chromium reads commands from descriptor 3 and answers on 4. Above 9 ours can't be these.
        commands, answers = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands[0], answers[1])]
        os.close(commands[0])
        os.close(answers[1])
        arguments = [
            program,
            "--headless",
            "--no-sandbox",  # there is none for root in a container
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--mute-audio",
            "--no-first-run",
            "--remote-debugging-pipe",
            "--window-size=900,760",
            f"--user-data-dir={profile}",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", *arguments],
            pass_fds=theirs,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        self._commands, self._answers = commands[1], answers[0]
        self._ids = itertools.count(1)
        self._rest = b""
        self.events: list[dict] = []

    def call(
        self,
        method: str,
        session: str | None = None,
        patience: float = _PATIENCE_SECONDS,
        **params,
    ):
        """Has a method called, and waits for its result."""
        id = next(self._ids)
        message = {"id": id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            told = self._read(patience)
            if told.get("id") == id:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            if "method" in told:  # and no late answer
                self.events.append(told)

    def _read(self, patience: float) -> dict:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], patience)
            if not ready:
                raise Silent(f"Chromium says nothing for {patience} s")
            piece = os.read(self._answers, 1 << 20)
            assert piece, f"Chromium ended with code {self._process.wait()}"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no Chromium: scripts/setup_system.sh chromium installs it")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def new_page(browser):
    """Opens a tab, which is closed after the test."""
    pages = []

    def new_page():
        for _ in range(_TABS):
            try:
                pages.append(Page(browser))
            except Silent:
                continue
            return pages[-1]
        raise Silent(f"none of {_TABS} tabs answers")

    yield new_page
    for page in pages:
        page.close()
