"""Qdrant's official local engine behind REST, as a server of its own."""

import sys
import urllib.request

from stream.embedded.process import Server, folder_of, port_for, spawn
from stream.settings import Settings


def check(settings: Settings) -> None:
    """Raise a `UserError` for what cannot work, before anything is started."""
    port_for(settings, "qdrant_port")


def start(settings: Settings) -> Server:
    """A ready Qdrant; its address is an http:// URL."""
    folder, port = folder_of(settings, "qdrant"), port_for(settings, "qdrant_port")
    command = [sys.executable, "-m", "stream.embedded.qdrant_server", "--path", str(folder), "--port", str(port)]
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else ""
    server = spawn("Qdrant", f"http://127.0.0.1:{port}", folder, command, {"QDRANT__SERVICE__API_KEY": key})
    return server.wait_ready(lambda: _answers(server.address), settings.start_timeout)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/readyz", timeout=1).close()
    except OSError:
        return False
    return True
