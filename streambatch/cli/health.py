"""`streambatch health`: what a container's health check runs, where there is no curl and no shell."""

import http.client
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 << 10
HEALTHY, UNHEALTHY, MISNAMED = 0, 1, 2


def probe(url: str, *, is_ready_asked: bool) -> int:
    """Ask a daemon whether it is alive, or whether it is ready, print its answer and return the exit code."""
    base = url if "://" in url else f"http://{url}"
    page = f"{base.rstrip('/')}/{'readyz' if is_ready_asked else 'livez'}"
    if not page.startswith(("http://", "https://")):
        print(f"error: URL: found {url!r}; allowed: an admin port, such as http://127.0.0.1:9464", file=sys.stderr)
        return MISNAMED
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
