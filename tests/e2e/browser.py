"""A real browser: headless Chromium, driven through chromedriver by the few commands of WebDriver that are needed."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.programs import needs

PATIENCE_SECONDS = 30.0
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--no-default-browser-check", "--hide-scrollbars", "about:blank",
)  # fmt: skip
Scheme = Literal["light", "dark"]
TAB = "\ue004"
needs_browser = needs("chromium", "chromedriver")
_STARTED = re.compile(rb"started successfully on port (\d+)")


class BrowserError(AssertionError):
    """The browser couldn't do what it was told."""


class Browser:
    """One window. Use `browsing`."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"args": [*SWITCHES, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._base = driver
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base = f"{driver}/session/{session['sessionId']}"
        self._ask("POST", "/timeouts", {"script": PATIENCE_SECONDS * 1000})

    def open(self, url: str) -> None:
        """Load a page, to its `load` event."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body of JavaScript returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """Return the text of the first element that a CSS selector finds; empty if there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def until(self, is_true: Callable[[], Any], what: str) -> None:
        """Wait until the page shows something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_true():
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {what}; {self.text('body')}"
            time.sleep(0.05)  # a page tells nobody that it has changed

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": keys}]})

    def screen(self, width: int, height: int, scheme: Scheme = "light", *, scale: float = 1) -> None:
        """Show pages on a screen of this size and with this preference."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def without_scripts(self, *, are_off: bool = True) -> None:
        """Run no scripts of pages from now on, or run them again."""
        self._command("Emulation.setScriptExecutionDisabled", {"value": are_off})

    def picture(self) -> bytes:
        """Return what the screen shows, as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def accessible(self) -> list[tuple[str, str]]:
        """Return role and name of everything that assistive technology is told of, in order."""
        nodes = self._command("Accessibility.getFullAXTree", {})["nodes"]
        by_id = {node["nodeId"]: node for node in nodes}
        found, left = [], [nodes[0]["nodeId"]]
        while left:
            node = by_id[left.pop()]
            left += reversed([child for child in node.get("childIds", ()) if child in by_id])
            if not node["ignored"]:
                found.append((node["role"]["value"], node.get("name", {}).get("value", "")))
        return found

    def console(self) -> list[str]:
        """Return what came on the console since it was last asked for: messages, errors, failed requests."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since it was last asked."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def close(self) -> None:
        """End the browser."""
        self._ask("DELETE", "")

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._base}{path}", data, {"content-type": "application/json"})
        request.method = method
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise BrowserError(json.load(error)["value"]["message"]) from None


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start a browser with an empty profile; whatever happens, it is gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE) as driver:
            try:
                assert driver.stdout is not None
                port = next(match[1].decode() for line in driver.stdout if (match := _STARTED.search(line)))
                browser = Browser(f"http://127.0.0.1:{port}", Path(profile))
                try:
                    yield browser
                finally:
                    browser.close()
            finally:
                driver.terminate()
