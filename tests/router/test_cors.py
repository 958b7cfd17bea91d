"""Pages of other origins: closed, unless an operator has opened it."""

import httpx
import pytest

from gateway.cors import CorsPolicy, parse_cors
from tests.router.conftest import StartRouter

APP = "https://app.example"
PREFLIGHT = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
PATH = "/v1/chat/completions"


async def test_closed_unless_opened(http: httpx.AsyncClient) -> None:
    asked = await http.options(PATH, headers=PREFLIGHT)
    assert (asked.status_code, asked.headers["allow"]) == (204, "POST, OPTIONS")
    answered = await http.get("/v1/models", headers={"origin": APP})
    for response in (asked, answered):
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_opened_to_one_origin(start_router: StartRouter) -> None:
    cors = CorsPolicy((APP,), allowed_methods=("POST",))
    async with (
        start_router(cors=cors, api_key="secret") as router,
        httpx.AsyncClient(base_url=router.address) as http,
    ):
        asked = await http.options(PATH, headers=PREFLIGHT)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, APP)
        other = await http.options(PATH, headers=PREFLIGHT | {"origin": "https://other.example"})
        assert (other.status_code, "access-control-allow-origin" in other.headers) == (400, False)
        refused = await http.get("/v1/models", headers={"origin": APP})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, APP)
        assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("written", ['["https://a.example", "*"]', "https://a.example, *"])
def test_flags_as_vllm_writes_them_or_with_commas(written: str) -> None:
    policy = parse_cors(written, None, "authorization", credentials=False)
    assert policy == CorsPolicy(("https://a.example", "*"), ("*",), ("authorization",))


@pytest.mark.parametrize(
    ("origins", "methods", "credentials", "message"),
    [
        (None, "GET", False, "there is no --allowed-origins"),
        (None, None, True, "there is no --allowed-origins"),
        ("*", None, True, "must name each origin"),
        ("[*]", None, False, "not valid JSON"),
        ("[1]", None, False, "an array of strings"),
    ],
)
def test_flags_that_contradict(
    origins: str | None, methods: str | None, credentials: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_cors(origins, methods, None, credentials=credentials)


def test_no_flags_no_policy() -> None:
    assert parse_cors(None, None, None, credentials=False) is None
    assert parse_cors("[]", None, None, credentials=False) is None
