"""The real frontend of the live server in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import LiveServer
from pack.host.browser import FLAGS, find_browser
from pack.host.demo import template_address
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

READY = "() => window.app?.graph && window.LiteGraph?.registered_node_types?.DreamOmniReferenceSet"
# Chromium's own complaints that say nothing about the pack.
NOT_OURS = (
    "favicon",
    "Failed to load resource",
    "user.css",
    "api.comfy.org",
    "googletagmanager",
    # Newer frontends ask how large a missing model is, which the server's policy forbids.
    "https://huggingface.co",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        yield opened
        opened.close()


def open_frontend(browser: Browser, live_server: LiveServer, path: str = "/") -> Page:
    """A page of the frontend that knows its nodes; `page.errors` collects what went wrong in it."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda line: page.errors.append(line.text) if is_ours(line) else None)
    page.goto(live_server.url + path)
    page.wait_for_function(READY, timeout=120_000)
    return page


def is_ours(line: ConsoleMessage) -> bool:
    return line.type == "error" and not any(word in line.text for word in NOT_OURS)


@pytest.fixture
def template_page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    """A page opened at the address `dev.py demo --serve` prints."""
    opened = open_frontend(
        browser, live_server, template_address(live_server.client).removeprefix(live_server.url)
    )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    opened = open_frontend(browser, live_server)
    yield opened
    opened.close()
