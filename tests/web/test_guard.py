"""Who is let in where, asked over real HTTP: by listener, token, host and origin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from streambatch.config.sections import HttpOptions
from streambatch.core.errors import ConfigError
from streambatch.web.app import OPEN
from tests.web.clients import admin_of, ask, serving

TOKEN = "b1/tter-t0ken;="
OPEN_TO_ALL = "0.0.0.0:0"
LOCAL = "127.0.0.1:0"
GUARDED = ("/", "/status", "/config", "/events", "/-/reload", "/nope")

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


@asynccontextmanager
async def guarded(listen: str = OPEN_TO_ALL, token: str | None = TOKEN) -> AsyncIterator[str]:
    """Serve what an admin port on `listen` serves; it is the address to ask at, on this machine either way."""
    admin = admin_of(listen=listen, token=token)
    async with serving(admin.app, listen) as address:
        yield f"127.0.0.1:{address.rpartition(':')[2]}"


@pytest.mark.parametrize("path", GUARDED)
async def test_without_a_token_set_only_this_machine_is_answered(path: str) -> None:
    async with guarded(token=None) as address:
        answer = await ask(address, path)
    assert answer.status == 403
    assert answer.json == {
        "error": "this address is not a loopback address and no token is set: set [http] token, "
        "or listen on 127.0.0.1; metrics and probes are open"
    }


@pytest.mark.parametrize("token", [TOKEN, None])
@pytest.mark.parametrize("path", OPEN)
async def test_metrics_and_probes_answer_everybody(path: str, token: str | None) -> None:
    async with guarded(token=token) as address:
        assert (await ask(address, path, headers={"host": "prometheus.example"})).status == 200


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer \xe9"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"cookie": f"streambatch_token={TOKEN}"},
        {"x-forwarded-for": "127.0.0.1", "host": "localhost"},
    ],
)
async def test_without_the_token_nobody_is_let_in(path: str, headers: dict[str, str]) -> None:
    async with guarded() as address:
        answer = await ask(address, path, headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["error"].startswith("the token of [http] token is wanted here")
    assert "set-cookie" not in answer.headers


async def test_with_the_token_one_is_let_in_whatever_the_host() -> None:
    for listen in (OPEN_TO_ALL, LOCAL):
        async with guarded(listen) as address:
            for scheme in ("Bearer", "bearer"):
                headers = {"authorization": f"{scheme} {TOKEN}", "host": "scores.example"}
                assert (await ask(address, "/status", headers=headers)).status == 200


async def test_a_browser_gets_a_cookie_for_the_token_and_an_address_without_it() -> None:
    async with guarded() as address:
        answer = await ask(address, "/?token=b1%2Ftter-t0ken%3B%3D")
        assert (answer.status, answer.headers["location"]) == (303, "/")
        cookie, *attributes = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
        assert TOKEN not in cookie
        for path in ("/", "/status"):
            assert (await ask(address, path, headers={"cookie": f"other=1; {cookie}"})).status == 200
            assert (await ask(address, path, headers={"cookie": f"{cookie}x"})).status == 401


async def test_a_token_in_the_address_is_for_the_page_alone() -> None:
    async with guarded() as address:
        assert (await ask(address, "/?token=wrong")).status == 401
        assert (await ask(address, "/status?token=b1%2Ftter-t0ken%3B%3D")).status == 401
        assert (await ask(address, "/?token=b1%2Ftter-t0ken%3B%3D", "POST")).status == 401


@pytest.mark.parametrize("token", [TOKEN, None])
@pytest.mark.parametrize("host", ["localhost", "localhost:9464", "a.localhost:1", "127.8.8.8", "127.0.0.1:9", "[::1]"])
async def test_on_this_machine_nothing_is_asked(token: str | None, host: str) -> None:
    async with guarded(LOCAL, token) as address:
        assert (await ask(address, "/status", headers={"host": host})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9464", "localhost.evil.example", "10.0.0.1", "[", ""])
async def test_a_name_that_was_made_to_point_here_is_not_answered(host: str) -> None:
    async with guarded(LOCAL) as address:
        for path in ("/", "/status", "/config", "/events", "/-/reload"):
            answer = await ask(address, path, headers={"host": host})
            assert answer.status == 403
            assert answer.json["error"].startswith(f"Host: found {host}; allowed: localhost or a loopback address")
        assert (await ask(address, "/livez", headers={"host": host})).status == 200


async def test_the_name_that_the_config_listens_on_may_be_asked_by() -> None:
    admin = admin_of(listen="Scores.Example:9464")
    async with serving(admin.app, LOCAL) as address:
        assert (await ask(address, "/status", headers={"host": "scores.example:9464"})).status == 200


@pytest.mark.parametrize("listen", [LOCAL, OPEN_TO_ALL])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://["])
async def test_a_page_from_elsewhere_can_t_have_anything_done(listen: str, origin: str) -> None:
    async with guarded(listen) as address:
        headers = {"authorization": f"Bearer {TOKEN}", "origin": origin}
        answer = await ask(address, "/-/reload", "POST", headers)
        assert (answer.status, answer.json["error"]) == (
            403, f"Origin: found {origin}; allowed: this port's own page",
        )  # fmt: skip
        own = {"authorization": f"Bearer {TOKEN}", "origin": f"http://{address}"}
        assert (await ask(address, "/-/reload", "POST", own)).status == 404


@pytest.mark.parametrize("token", ["", " ", "two words", "schlüssel", "line\nbreak"])
async def test_a_token_that_no_header_can_hold_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match=r"token: found .*; allowed: one or more visible ASCII characters") as raised:
        HttpOptions(token=token)
    assert not token.strip() or token not in str(raised.value)


async def test_a_token_isn_t_shown() -> None:
    assert TOKEN not in repr(HttpOptions(token=TOKEN))
