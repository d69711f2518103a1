"""Checks by HTTP and HTTPS."""

import ssl
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from featherlb.model import CheckType, Endpoint, HealthCheck, join_host_port

BODY_LIMIT = 1 << 16
"""Bytes of a response's body that are searched."""


async def request(check: HealthCheck, backend: Endpoint) -> str | None:
    """Make one request: None if the response is as wanted, or why not, in a few words. OSError if
    there is no connection."""
    try:
        return await _judge(check, backend)
    except (ssl.SSLError, aiohttp.ClientSSLError):
        return "the TLS handshake failed"
    except OSError:
        raise
    except aiohttp.ClientResponseError:
        return "the answer is not HTTP"
    except aiohttp.ClientError:
        return "the connection was closed without an answer"


async def _judge(check: HealthCheck, backend: Endpoint) -> str | None:
    place = join_host_port(str(backend.address), backend.port)
    url = URL(f"{check.type}://{place}{check.path}", encoded=True)
    name = urlsplit(f"//{check.host}").hostname if check.host else None
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
        session.request(
            check.method,
            url,
            headers={"Host": check.host} if check.host else None,
            server_hostname=name if check.type is CheckType.HTTPS else None,
            allow_redirects=False,
            ssl=False,
        ) as response,
    ):
        if not any(response.status in wanted for wanted in check.status):
            return f"status {response.status}"
        if check.body is not None:
            body = b""
            async for part in response.content.iter_any():
                body += part
                if len(body) >= BODY_LIMIT:
                    break
            if check.body.encode() not in body[:BODY_LIMIT]:
                return "the body doesn't hold what is expected"
    return None
