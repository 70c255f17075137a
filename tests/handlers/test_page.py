"""handlers/page.py: the pages and asrserver.js are sent as they are, to everybody, and may do little."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer

from asrserver.config import Settings
from asrserver.handlers import page
from asrserver.protocol.options import Options
from tests.api_keys import GIVEN

WEB = Path(page.__file__).parents[1] / "data" / "web"
SOURCES = {path.name: path.read_text("utf-8") for path in WEB.iterdir()}
HTML = [name for name in SOURCES if name.endswith(".html")]

PATHS = [*page.PAGES, *(page.FOLDER + name for name in SOURCES if name not in page.PAGES.values())]


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        api_keys=f"a:{GIVEN}",
        allowed_origins="https://page.example",
    )


@pytest.fixture
def fetch(base_url: str, http_server: HTTPServer, http_client: AsyncHTTPClient) -> Callable[..., Any]:
    async def get(path: str, method: str = "GET", **headers: str) -> HTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http_client.fetch(
            base_url + path, method=method, headers=named, raise_error=False, allow_nonstandard_methods=True
        )

    return get


@pytest.mark.gen_test(timeout=60)
async def test_files_are_sent_as_they_are(fetch: Callable[..., Any]) -> None:
    """Without a key; with their types, and with what a browser is to keep them from; again only if they changed."""
    for path in PATHS:
        name = page.PAGES.get(path, path.rpartition("/")[2])
        response = await fetch(path)
        assert (response.code, response.body.decode()) == (200, SOURCES[name]), path
        assert response.headers["Content-Type"] == page.MEDIA_TYPES[name.rpartition(".")[2]]
        assert page.HEADERS.items() <= dict(response.headers.get_all()).items()
        known = await fetch(path, If_None_Match=response.headers["ETag"])
        assert (known.code, known.body) == (304, b"")
        assert known.headers["Content-Security-Policy"] == page.SECURITY_POLICY
        assert (await fetch(path, "HEAD")).headers["Content-Length"] == str(len(response.body))
    for path in ("/web/", "/web/..%2f..%2fconfig.py", "/web/%2e%2e/config.py", "/web/none.js", "/index.html"):
        assert (await fetch(path)).code in (401, 404), path
    assert (await fetch("/", "POST")).code == 405


@pytest.mark.gen_test(timeout=60)
async def test_pages_of_allowed_origins_may_load_the_module(fetch: Callable[..., Any]) -> None:
    response = await fetch("/asrserver.js", Origin="https://page.example")
    assert response.headers["Access-Control-Allow-Origin"] == "https://page.example"
    refused = await fetch("/asrserver.js", Origin="https://elsewhere.example")
    assert (refused.code, "Access-Control-Allow-Origin" in refused.headers) == (403, False)


# -- the files themselves


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    assert "unsafe" not in page.SECURITY_POLICY
    assert page.SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "http" not in page.SECURITY_POLICY


@pytest.mark.parametrize("name", HTML)
def test_the_html_has_nothing_inline(name: str) -> None:
    """What the policy would refuse: scripts, styles and handlers in the HTML itself."""
    html = SOURCES[name]
    assert not re.findall(r"<style|<script(?![^>]* src=)| style=| on\w+=|javascript:", html)
    assert re.search(r'<html lang="en">', html)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_from_elsewhere(name: str) -> None:
    """No address of another host; an XML namespace is none."""
    text = SOURCES[name].replace("http://www.w3.org/2000/svg", "")
    found = re.findall(r"(?:(?:https?|wss?):)?//[\w.-]+\.\w+", text) if name.endswith((".css", ".html", ".svg")) else []
    found += re.findall(r"""["'`](?:https?|wss?)://(?!localhost)[^"'`$]+""", text)
    assert found == []


def test_every_file_is_used() -> None:
    used = {name for name in SOURCES for text in SOURCES.values() if re.search(rf"[\"'/]{re.escape(name)}\"", text)}
    assert SOURCES.keys() - used == {"index.html", "docs.html", "captions.html"}


def texts() -> dict[str, dict[str, str]]:
    """The texts of each language."""
    parts = re.split(r"^  (en|zh): \{$", SOURCES["texts.js"], flags=re.M)
    return {
        language: dict(re.findall(r'^    (\w+): "(.*)",$', text.partition("\n  },")[0], re.M))
        for language, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_every_text_is_there_in_both_languages() -> None:
    """With the same blanks; each is used, and each that is used is there."""
    both = texts()
    assert len(both["en"]) > 80
    assert both["en"].keys() == both["zh"].keys()
    blanks = {
        language: {name: sorted(re.findall(r"\{\w+\}", text)) for name, text in found.items()}
        for language, found in both.items()
    }
    assert blanks["en"] == blanks["zh"]
    code = "".join(text for name, text in SOURCES.items() if name != "texts.js")
    named = set(re.findall(r'data-(?:text|label|hint)="(\w+)"|\btext\("(\w+)"', code))
    assert {name for pair in named for name in pair if name} <= both["en"].keys()
    families = ("error_", "status_", "save_")
    unused = {name for name in both["en"] if not name.startswith(families) and not re.search(rf'["`]{name}["`]', code)}
    assert unused == set()


def test_types_are_there_for_everything_that_is_exported() -> None:
    names = r"^export (?:const|class|function) (\w+)"
    exported = set(re.findall(names, SOURCES["asrserver.js"], re.M))
    assert exported == set(re.findall(names, SOURCES["asrserver.d.ts"], re.M))


def test_types_are_there_for_every_option_of_a_session() -> None:
    (options,) = re.findall(r"interface SessionOptions \{\n(.*?)\n\}", SOURCES["asrserver.d.ts"], re.S)
    assert set(re.findall(r"^  (\w+)\??:", options, re.M)) == {
        *Options.__struct_fields__,
        *("session_id", "user_id", "signal"),
    }
