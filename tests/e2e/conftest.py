"""A real browser, kept from the network, against the pages over fakes."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.ui.fakes import World
from tests.ui.serving import Served, serve

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)


@dataclass
class Watched:
    """What a page did besides showing itself."""

    errors: list[str] = field(default_factory=list)
    foreign_requests: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser: expected Debian's chromium at {CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests: building the pages takes a second."""
    with serve(World(), tmp_path_factory.mktemp("storage")) as one:
        yield one


@pytest.fixture
def served(serving: Served) -> Served:
    """A fresh fake studio that writes slowly enough to be watched."""
    serving.world.reset()
    serving.world.word_s, serving.world.step_s = 0.01, 0.05
    return serving


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    yield context.new_page()
    context.close()


@pytest.fixture
def watched(page: Page, served: Served) -> Watched:
    """Console errors and requests of `page`, from its first load on."""
    seen = Watched()
    page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))

    def note(url: str) -> None:
        seen.requests.append(url)
        if not url.startswith((served.url, "data:", "blob:")):
            seen.foreign_requests.append(url)

    page.on("request", lambda request: note(request.url))
    return seen
