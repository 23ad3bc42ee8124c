"""Chromium without a window, and what a page must be in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = 1100, 390


def chromium() -> tuple[str, str] | None:
    """Paths of the browser and its driver; None where one is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser with a profile of its own, that is offline."""
    found = chromium()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = found[0]
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))
        try:
            driver.execute_cdp_cmd("Network.enable", {})
            driver.execute_cdp_cmd(
                "Network.emulateNetworkConditions",
                {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
            )
            yield Browser(driver)
        finally:
            driver.quit()


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, path: Path, width: int = DESKTOP, dark: bool = False, height: int = 900) -> None:
        """Open a file and wait until its charts have their texts and colours."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())
        self.wait(
            "const charts = [...document.querySelectorAll('.plotly-graph-div')];"
            "return charts.every(c => c._fullLayout && c.layout.font.color)"
        )

    def _command(self, name: str, arguments: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd(name, arguments)

    def wait(self, script: str) -> Any:
        return WebDriverWait(self.driver, 60).until(lambda d: d.execute_script(script))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the console has, since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def hover_point(self, chart: str, trace: int, point: int, scroll: bool = True) -> str:
        """Move the mouse to a point of a chart; the text that comes up."""
        if scroll:
            into_view = "document.getElementById(arguments[0]).scrollIntoView({block: 'center'})"
            self.run(into_view, chart)
        x, y = self.run(
            "const c = document.getElementById(arguments[0]), l = c._fullLayout;"
            "const t = c.data[arguments[1]], b = c.getBoundingClientRect();"
            "return [b.left + l.xaxis._offset + l.xaxis.d2p(t.x[arguments[2]]),"
            " b.top + l.yaxis._offset + l.yaxis.d2p(t.y[arguments[2]])]",
            chart, trace, point,
        )  # fmt: skip
        actions = ActionChains(self.driver)
        actions.w3c_actions.pointer_action.move_to_location(round(x) - 3, round(y) - 3)
        actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        actions.perform()
        return self.wait(
            "const found = [...document.querySelectorAll('.hoverlayer .hovertext')];"
            "return found.map(each => each.textContent).join('\\n')"
        )
