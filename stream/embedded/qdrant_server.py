"""Qdrant's REST API over its official local engine: `python -m stream.embedded.qdrant_server --path DIR --port N`.

Search is exact, good to some 1e5 points. Requests reach the engine in one thread, one after another; health answers
do not wait for it. Whatever is answered is on disk: `wait` is always true. Loopback only; with QDRANT__SERVICE__API_KEY
set, requests need it as Qdrant's do.
"""

import argparse
import asyncio
import hmac
import importlib.metadata
import json
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pydantic_core
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from stream.embedded.qdrant_engine import Engine
from stream.embedded.qdrant_routes import ROUTES, Call, NotFoundError, Route

REQUEST_BYTES = 32 << 20  # Qdrant's own default
SHUTDOWN = 2.0  # seconds for requests under way
ABSENT = re.compile(r"^(Collection|Point|Alias) (.+?) (not found|is not found|does not exist)")
CLASH = re.compile(r"^(Collection|Alias) .* already exists")


def main() -> None:
    parser = argparse.ArgumentParser(prog="qdrant_server")
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    # The engine advises a real server for large collections and indexes; who reads this log has chosen.
    warnings.simplefilter("ignore", UserWarning)
    app = application(options.path, os.environ.get("QDRANT__SERVICE__API_KEY", ""))
    web.run_app(app, host="127.0.0.1", port=options.port, print=None, access_log=None, shutdown_timeout=SHUTDOWN)


def application(path: Path, api_key: str = "") -> web.Application:
    """The server over the storage in `path`, which is opened when the application starts."""

    async def engine(app: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "engine") as worker:
            app[WORKER] = worker
            app[ENGINE] = await loop.run_in_executor(worker, Engine, path)
            yield
            await loop.run_in_executor(worker, app[ENGINE].close)

    app = web.Application(client_max_size=REQUEST_BYTES, middlewares=[_keyed(api_key), _enveloped])
    app.cleanup_ctx.append(engine)
    for probe in ("healthz", "livez", "readyz"):
        app.router.add_get(f"/{probe}", _healthy)
    app.router.add_get("/", _version)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _handler(route))
    return app


ENGINE = web.AppKey("engine", Engine)
WORKER = web.AppKey("worker", ThreadPoolExecutor)


async def _healthy(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.path[1:]} check passed")


async def _version(_: web.Request) -> web.Response:
    """The version is the engine's, whose API this is."""
    title = "qdrant - vector search engine (local engine of qdrant-client, served by Facetstream)"
    return web.json_response({"title": title, "version": importlib.metadata.version("qdrant-client")})


def _handler(route: Route) -> Any:
    body_type = TypeAdapter(route.body) if route.body is not None else None

    async def handle(request: web.Request) -> web.Response:
        raw = await request.read()

        def work() -> bytes:
            started = time.perf_counter()
            body = body_type.validate_json(raw or b"null") if body_type else None
            call = Call(request.match_info.get("collection", ""), request.match_info.get("item", ""), body)
            result = route.answer(request.app[ENGINE], call)
            took = time.perf_counter() - started
            return pydantic_core.to_json({"result": result, "status": "ok", "time": took}, inf_nan_mode="null")

        answer = await asyncio.get_running_loop().run_in_executor(request.app[WORKER], work)
        return web.Response(body=answer, content_type="application/json")

    return handle


def _keyed(api_key: str) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("api-key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        probe = request.path in ("/", "/healthz", "/livez", "/readyz")
        if api_key and not probe and not hmac.compare_digest(given.encode(), api_key.encode()):
            return _error(401, "Must provide an API key or an Authorization bearer token")
        answer: web.StreamResponse = await handler(request)
        return answer

    return check


@web.middleware
async def _enveloped(request: web.Request, handler: Any) -> web.StreamResponse:
    """Failures as Qdrant answers them: the status code, and one sentence under `status.error`."""
    try:
        answer: web.StreamResponse = await handler(request)
    except ValidationError as error:
        return _error(400, f"Format error in JSON body: {_first_problem(error)}")
    except NotFoundError as error:
        return _error(404, f"Not found: {error}")
    except KeyError as error:
        return _error(404, f"Not found: No point with id {error.args[0]} found")
    except (ValueError, TypeError, NotImplementedError) as error:
        return _refused(str(error))
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return _error(500, f"Service internal error: {error!r}")
    return answer


def _refused(reason: str) -> web.Response:
    if ABSENT.match(reason):
        return _error(404, f"Not found: {reason}")
    if CLASH.match(reason):
        return _error(409, f"Wrong input: {reason}!")
    return _error(400, reason if reason.startswith("Wrong input") else f"Wrong input: {reason}")


def _first_problem(error: ValidationError) -> str:
    """A body may fit none of several forms: the deepest complaint is about the form that was meant."""
    problem = max(error.errors(include_url=False, include_context=False), key=lambda e: len(e["loc"]))
    field = ".".join(str(part) for part in problem["loc"] if not str(part)[:1].isupper() and "[" not in str(part))
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def _error(status: int, sentence: str) -> web.Response:
    body = {"status": {"error": sentence}, "time": 0.0}
    return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")


if __name__ == "__main__":
    main()
