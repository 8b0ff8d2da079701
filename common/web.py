"""The HTTP interface of a service: POST /predict, GET and POST /tasks, DELETE /tasks/NAME, GET /healthz."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from common.errors import InputError, plain
from common.inference import Texts, check_question
from common.own_files import check_text
from common.runtime.files import parse_json
from common.service import Batcher, Busy, Removed, Served, Service, Taken

LOCAL = ("127.0.0.1", "localhost")
"""Names of this machine in requests: a page of another name in a browser here must not reach the service."""


@dataclass(frozen=True)
class Limits:
    """What a request may be."""

    max_texts: int = 256
    """Examples of a request."""
    max_characters: int = 100_000
    """Characters of all of its texts."""

    @property
    def max_bytes(self) -> int:
        """Of a body: a character may be escaped as 12 bytes."""
        return 12 * self.max_characters + 1_000 * self.max_texts + 10_000


def build(service: Service, batcher: Batcher, limits: Limits, home: Path | None, hosts: tuple[str, ...]) -> FastAPI:
    """The application.

    Args:
        home: the folder below which are the runs that may be loaded while it runs; None = none may.
        hosts: names that requests may call this machine.
    """
    app = FastAPI(openapi_url=None)  # whose pages would load scripts from elsewhere
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    routes = _Routes(service, batcher, limits, home)
    app.get("/healthz")(routes.healthz)
    app.get("/tasks")(routes.tasks)
    app.post("/predict")(routes.predict)
    app.post("/tasks")(routes.load)
    app.delete("/tasks/{name:path}")(routes.remove)
    return app


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    """One line; what is no HTTPException is a bug."""
    is_ours = isinstance(error, HTTPException)
    line = str(error.detail) if is_ours else f"{type(error).__name__}: {error}"  # type: ignore[attr-defined]
    return JSONResponse({"error": plain(line)}, error.status_code if is_ours else 500)  # type: ignore[attr-defined]


class _Routes:
    def __init__(self, service: Service, batcher: Batcher, limits: Limits, home: Path | None):
        self.service, self.batcher, self.limits, self.home = service, batcher, limits, home

    async def healthz(self) -> JSONResponse:
        alive = self.batcher.thread.is_alive()
        found = {"status": "ok" if alive else "stopped", "tasks": len(self.service.runs)}
        return JSONResponse(found, 200 if alive else 503)

    async def tasks(self) -> JSONResponse:
        return JSONResponse({"tasks": [run.describe() for run in self.service.runs.values()]})

    async def predict(self, request: Request) -> JSONResponse:
        body = await _body(request, self.limits.max_bytes)
        run = _find(self.service, body)
        rows, top = _rows(run, body, self.limits), body.get("top")
        if top is not None and (type(top) is not int or top < 1):
            raise HTTPException(400, f"top is {top!r}: wanted a number from 1")
        try:
            answers = await asyncio.wrap_future(self.batcher.submit(run, rows))
        except Busy as error:
            raise HTTPException(503, str(error)) from error
        except InputError as error:
            raise HTTPException(404 if isinstance(error, Removed) else 500, str(error)) from error
        for answer in answers if top else ():
            if "probabilities" in answer:
                answer["probabilities"] = dict([*answer["probabilities"].items()][:top])
        return JSONResponse({"task": run.name, "predictions": answers})

    async def load(self, request: Request) -> JSONResponse:
        body = await _body(request, self.limits.max_bytes)
        folder, name = _below(self.home, body), body.get("task")
        if not isinstance(name, str | None) or name == "":
            raise HTTPException(400, f"task is {name!r}: wanted a name")
        try:
            run = await asyncio.to_thread(self.service.add, folder, name)
        except InputError as error:
            raise HTTPException(409 if isinstance(error, Taken) else 400, str(error)) from error
        return JSONResponse(run.describe(), 201)

    async def remove(self, name: str) -> JSONResponse:
        if self.home is None:
            raise HTTPException(403, "started without --load_from: tasks stay as they are")
        try:
            await asyncio.to_thread(self.service.remove, name)
        except KeyError as error:
            raise HTTPException(404, f"no task {name!r}: there are {', '.join(self.service.runs)}") from error
        return JSONResponse({"removed": name})


async def _body(request: Request, most: int) -> dict[str, Any]:
    """The JSON object of a request, which is read up to a number of bytes."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise HTTPException(413, f"the body is longer than {most:,} bytes: send fewer or shorter texts")
    try:
        body = parse_json(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON in UTF-8 ({error}): wanted an object") from error
    if not isinstance(body, dict):
        raise HTTPException(400, f"the body is a {type(body).__name__}: wanted a JSON object")
    return body


def _find(service: Service, body: dict[str, Any]) -> Served:
    """The run that a request names by `task`, or by `run`, the name of its folder."""
    given = {key: body[key] for key in ("task", "run") if key in body}
    if len(given) != 1:
        raise HTTPException(400, f"{' and '.join(given) or 'neither task nor run'} given: wanted one of task and run")
    ((key, name),) = given.items()
    runs = list(service.runs.values())
    found = [run for run in runs if name == (run.name if key == "task" else run.folder.name)]
    if len(found) != 1:
        there = ", ".join(run.name if key == "task" else run.folder.name for run in runs)
        raise HTTPException(404, f"{len(found) or 'no'} {key} {str(name)[:100]!r}: there are {there}")
    return found[0]


def _rows(run: Served, body: dict[str, Any], limits: Limits) -> list[Texts]:
    """The examples of a request: texts or, where an example has several, lists of them or objects with their names."""
    texts, fields = body.get("texts"), run.task.texts
    if not isinstance(texts, list) or not texts:
        raise HTTPException(400, "texts are missing: wanted a list with at least one example")
    if len(texts) > limits.max_texts:
        raise HTTPException(413, f"{len(texts):,} texts: wanted at most {limits.max_texts:,} in a request")
    rows = []
    for number, each in enumerate(texts):
        if isinstance(each, dict):
            each = [each.get(field) for field in fields]
        elif isinstance(each, str):
            each = [each]
        if not isinstance(each, list) or len(each) != len(fields):
            wanted = "a text" if len(fields) == 1 else f"a list of {len(fields)} texts, or an object with these names"
            raise HTTPException(400, f"texts[{number}]: {run.name} wants {', '.join(fields)}, as {wanted}")
        try:
            place = f"texts[{number}]"
            rows.append(tuple(check_text(text, place, field) for text, field in zip(each, fields, strict=True)))
            check_question(run.task, rows[-1], place)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
    n = sum(len(text) for row in rows for text in row)
    if n > limits.max_characters:
        raise HTTPException(413, f"{n:,} characters of texts: wanted at most {limits.max_characters:,} in a request")
    return rows


def _below(home: Path | None, body: dict[str, Any]) -> Path:
    """The folder of a run that a request wants to load."""
    if home is None:
        raise HTTPException(403, "started without --load_from: no run may be loaded")
    if not isinstance(body.get("run"), str):
        raise HTTPException(400, f"run is {body.get('run')!r}: wanted a folder below that of --load_from")
    try:
        folder = (home / body["run"]).resolve()
    except (OSError, ValueError) as error:
        raise HTTPException(400, f"run is {body['run'][:100]!r}: wanted a folder below that of --load_from") from error
    if not folder.is_relative_to(home.resolve()):
        raise HTTPException(403, f"{body['run']} is not below the folder of --load_from")
    return folder
