"""Pictures of a report, section by section, taken in headless Chromium.

For the documentation, and to look at a page in both themes and on a narrow screen:

    python -m pipeline_lib.report.screenshots results/demo/report/index.html docs/images \
        --sections overview scores --theme light --width 1280

Needs the packages of the extra `dev` (selenium), and `chromium` and `chromedriver` on the PATH.
"""

from __future__ import annotations

import argparse
import base64
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.errors import DataError, VitAtlasError, close_matches

logger = logging.getLogger(__name__)

#: CSS pixels around a block.
MARGIN = 20
#: Flags of a browser that stays offline, keeps nothing and needs no display.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)


def missing_browser() -> str:
    """Why no browser can be driven here, or nothing where one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if absent:
        return f"{' and '.join(absent)} not on the PATH (Debian: apt install chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the package selenium is not installed (pip install -e '.[dev]')"
    return ""


@contextmanager
def open_browser(width: int = 1280, height: int = 900, theme: str = "light") -> Iterator[Any]:
    """A headless Chromium without network, as a selenium driver.

    Parameters
    ----------
    width, height
        Size of the view in CSS pixels.
    theme
        `light` or `dark`: what the page is told that the reader prefers.

    Raises
    ------
    DataError
        There is no browser to drive; the message says what to install.
    """
    problem = missing_browser()
    if problem:
        raise DataError(f"no screenshots: {problem}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            preferences = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
            features = [{"name": name, "value": value} for name, value in preferences.items()]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.execute_cdp_cmd("Network.enable", {})
            offline = {"offline": True, "latency": 0}
            offline |= {"downloadThroughput": -1, "uploadThroughput": -1}
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            yield driver
        finally:
            driver.quit()


def section_names(driver: Any) -> list[str]:
    """Ids of the sections of the page that is open, in their order."""
    script = "return [...document.querySelectorAll('main section')].map(s => s.id)"
    return list(driver.execute_script(script))


def block_names(driver: Any) -> list[str]:
    """Ids of the figures, tables and galleries of the page that is open: `block-…`."""
    script = "return [...document.querySelectorAll('main .block')].map(b => b.id)"
    return list(driver.execute_script(script))


def take(driver: Any, element: str, path: Path, scale: float = 1.0, most: int = 6000) -> None:
    """Write a picture of the element with this id as PNG, at most `most` pixels high.

    A section is taken over the width of the page, a block (`block-…`) with a margin around it.
    """
    script = (
        "const b = document.getElementById(arguments[0]).getBoundingClientRect();"
        "return [b.left, b.top + scrollY, b.width, b.height, document.documentElement.clientWidth]"
    )
    left, top, width, height, page = driver.execute_script(script, element)
    margin = 0
    if element.startswith("block-"):
        margin = MARGIN
        left, page = max(0, left - margin), min(page - left + margin, width + 2 * margin)
    else:
        left = 0
    clip = {"x": left, "y": max(0, top - margin), "width": page, "scale": scale}
    clip["height"] = min(height + 2 * margin, most)
    shot = {"format": "png", "clip": clip, "captureBeyondViewport": True}
    data = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
    with atomic_path(path) as beside:
        beside.write_bytes(data)
    logger.info("%s: %d kB", path, len(data) // 1000)


def take_sections(
    page: str | Path,
    folder: str | Path,
    sections: Sequence[str] = (),
    theme: str = "light",
    width: int = 1280,
    scale: float = 1.0,
) -> list[Path]:
    """Pictures `{section}-{theme}-{width}.png` of sections (or blocks) of a page, by default all.

    Raises
    ------
    DataError
        The page does not exist, a section is not in it, or no browser is there.
    """
    page = Path(page).resolve()
    if not page.is_file():
        raise DataError(f"{page} does not exist; run snakemake to make the report")
    with open_browser(width, 900, theme) as driver:
        driver.get(page.as_uri())
        present = section_names(driver)
        known = [*present, *block_names(driver)]
        unknown = [name for name in sections if name not in known]
        if unknown:
            raise DataError(
                f"{page} has no section {unknown[0]!r}; {close_matches(unknown[0], known)}"
            )
        _settle(driver)
        paths = []
        for name in sections or present:
            path = Path(folder) / f"{name}-{theme}-{width}.png"
            take(driver, name, path, scale)
            paths.append(path)
    return paths


def _settle(driver: Any) -> None:
    """Wait until every picture of the page is decoded."""
    script = (
        "const done = arguments[0];"
        "const all = [...document.images]; all.forEach(i => { i.loading = 'eager'; });"
        "Promise.all(all.map(i => i.decode().catch(() => null))).then(() => done())"
    )
    driver.execute_async_script(script)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline_lib.report.screenshots",
        description="Pictures of a report, section by section, taken in headless Chromium.",
    )
    parser.add_argument("page", type=Path, help="results/RUN/report/index.html")
    parser.add_argument("folder", type=Path, help="where the PNG files go")
    parser.add_argument(
        "--sections", nargs="*", default=[], help="ids of sections or blocks; default: all sections"
    )
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1280, help="CSS pixels (default: 1280)")
    parser.add_argument("--scale", type=float, default=1.0, help="device pixels per CSS pixel")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        take_sections(
            asked.page, asked.folder, asked.sections, asked.theme, asked.width, asked.scale
        )
    except VitAtlasError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
