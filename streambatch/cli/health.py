"""`streambatch health`: what a container's health check runs, where there is no curl and no shell."""

import http.client
import sys
import urllib.error
import urllib.request

from streambatch.cli.admin_url import base_of

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 << 10
HEALTHY, UNHEALTHY = 0, 1


def probe(url: str, *, is_ready_asked: bool) -> int:
    """Ask a daemon whether it is alive, or whether it is ready, print its answer and return the exit code.

    Raises ConfigError for what is no address.
    """
    page = f"{base_of(url)}/{'readyz' if is_ready_asked else 'livez'}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(page, timeout=TIMEOUT_SECONDS) as answer:
            print(_text(answer))
            return HEALTHY
    except urllib.error.HTTPError as error:
        with error:
            print(_text(error), file=sys.stderr)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"error: {page}: {getattr(error, 'reason', error)}", file=sys.stderr)
    return UNHEALTHY


def _text(answer: http.client.HTTPResponse | urllib.error.HTTPError) -> str:
    return answer.read(ANSWER_BYTES_MAX).decode(errors="replace").rstrip()
