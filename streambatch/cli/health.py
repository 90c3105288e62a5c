"""`streambatch health`: a probe for health checks of containers without curl or a shell."""

import http.client
import sys
import urllib.error
import urllib.request

from streambatch.cli.admin_url import base_of

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 << 10
HEALTHY, UNHEALTHY = 0, 1


def probe(url: str, *, is_ready_asked: bool) -> int:
    """Print a daemon's answer to /livez, or to /readyz, and return the exit code.

    Raises ConfigError for a wrong address.
    """
    page = f"{base_of(url)}/{'readyz' if is_ready_asked else 'livez'}"
    # No proxy: it could answer in place of a daemon that is down.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(page, timeout=TIMEOUT_SECONDS) as answer:
            print(_text(answer))
            return HEALTHY
    except urllib.error.HTTPError as error:
        # An answer of 503 is an error to urllib; its body says what is wrong.
        with error:
            print(_text(error), file=sys.stderr)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"error: {page}: {getattr(error, 'reason', error)}", file=sys.stderr)
    return UNHEALTHY


def _text(answer: http.client.HTTPResponse | urllib.error.HTTPError) -> str:
    return answer.read(ANSWER_BYTES_MAX).decode(errors="replace").rstrip()
