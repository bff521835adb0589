"""Debian's chromium on a page from file://: for tests, and `python -m tests.chromium PAGE OUT` for
pictures of it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 800}}
PICTURES = {
    "light": {"viewport": SIZES["wide"], "color_scheme": "light"},
    "dark": {"viewport": SIZES["wide"], "color_scheme": "dark"},
    "phone": {"viewport": SIZES["phone"], "color_scheme": "light"},
}


@contextmanager
def started(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # root has no sandbox to enter; the page is our own
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


class opened:
    """A page that says nothing on the console and asks nobody for anything."""

    def __init__(self, browser: Browser, address: str, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("alert"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.address = address

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.said == []
        assert self.asked == [self.address]


def main(page: str, out: str) -> None:
    program = shutil.which("chromium")
    if program is None:
        sys.exit("no chromium here: apt install chromium")
    Path(out).mkdir(parents=True, exist_ok=True)
    with started(program) as browser:
        for name, options in PICTURES.items():
            with opened(browser, f"file://{Path(page).resolve()}", **options) as found:
                found.screenshot(path=f"{out}/{name}.png", full_page=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
