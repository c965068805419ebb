"""That the tests' own eyes see: a browser whose complaints were not heard would let everything pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.browser.browser import Browser

PAGE = """<!doctype html><html lang="en"><title>Wrong</title><main>
<script>document.title = "inline"</script><p style="color: red">styled</p>
<img src="/nothing.png"><p><a href="/"></a><script src="/loud.js"></script></main>"""


@pytest.fixture
def wrong() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {
                "/": ("text/html", PAGE),
                "/loud.js": ("text/javascript", "console.warn('loud'); undefined_thing()"),
            }
            kind, body = found.get(self.path, ("", ""))
            self.send_response(200 if kind else 404)
            self.send_header("content-type", kind or "text/plain")
            self.send_header(
                "content-security-policy", "default-src 'self'; style-src 'self'; script-src 'self'"
            )
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_what_a_page_does_wrong_is_seen(browser: Browser, wrong: str) -> None:
    browser.open(wrong)
    found = [rule.partition(":")[0] for rule in browser.inaccessible()]
    assert "image-alt" in found and "link-name" in found
    said = "\n".join(browser.complaints())
    for what in (
        "script-src-elem refused inline",
        "style-src-attr refused inline",
        "loud",
        "undefined_thing",
        "404",
    ):
        assert what in said, said
    assert browser.driver.title == "Wrong"
    browser.open(wrong)
    browser.forgive("refused|Refused|loud|undefined_thing|404|violates")
    assert browser.complaints() == []
