"""A server that speaks NDIF's protocol on loopback: ``python ndif_server.py KEY FOLDER...`` prints its port.

The ``ndif`` package itself needs CUDA, Redis, an object store and a Ray cluster. This does what its version 0.1.2 does
between the client and the model: ``/status``, ``/env``, ``/subscribe``, ``/request``, the key, the states of a job,
results on the socket, tracebacks as text. The weights are in this process only, and depthlens cannot be imported in it.
"""

from __future__ import annotations

import asyncio
import io
import json
import linecache
import os
import sys
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata

sys.modules["depthlens"] = None  # importing it is an error, as on a server

# ruff: noqa: E402
import torch
import tornado.web
import tornado.websocket
import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from nnsight.tracing.util import clean_traceback

WRAPPER = "nnsight.modeling.transformers.TransformersModel"
SOCKETS = {}
WORKER = ThreadPoolExecutor(1)


@contextmanager
def request_scope():
    """Blocks are remembered by file and line, and the next request may bring other ones for the same."""
    kept = [(place, dict(place)) for place in (linecache.cache, SOURCES, BLOCKS)]
    try:
        yield
    finally:
        for place, before in kept:
            place.clear()
            place.update(before)


def execute(request, blob):
    model = MODELS[request.model_key]
    model._remoteable_set_env(request.env)
    with request_scope():
        tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=request.compress)
        inc()
        try:
            tracer.execute(tracer.info.code)
            saves = _saves()
            saved = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in saves}
        finally:
            dec()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    data = buffer.getvalue()
    return zstandard.ZstdCompressor(level=3).compress(data) if request.compress else data


def end_where_broken(job):
    """A fault of this server must end it: a client would wait for a job that nobody runs any more."""
    if error := job.exception():
        traceback.print_exception(error)
        os._exit(1)


class Deployments(tornado.web.RequestHandler):
    def get(self):
        common = {"task": "text-generation", "revision": None, "deployment_level": "HOT"}
        deployments = {
            key: {
                "model_key": key,
                "repo_id": json.loads(key.partition(":")[2])["repo_id"],
                "application_state": "RUNNING",
            }
            | common
            for key in MODELS
        }
        self.write({"deployments": deployments, "cluster": {}})


class Env(tornado.web.RequestHandler):
    def get(self):
        names = ("nnsight", "torch", "transformers")
        self.write({"python_version": sys.version, "packages": {name: metadata.version(name) for name in names}})


class Subscribe(tornado.websocket.WebSocketHandler):
    def open(self):
        self.id = uuid.uuid4().hex
        SOCKETS[self.id] = self
        self.write_message(json.dumps({"session_id": self.id}))

    def on_close(self):
        SOCKETS.pop(self.id, None)


class Request(tornado.web.RequestHandler):
    def post(self):
        key = self.request.headers.get("ndif-api-key")
        if key != KEY:
            self.set_status(403 if key else 401)
            self.finish({"detail": "Invalid API key." if key else "Missing or invalid API key. Please visit ..."})
            return
        request = RequestModel.model_validate_json(self.get_body_argument("data"))
        blob = self.request.files["blob"][0]["body"]
        job = uuid.uuid4().hex
        self.write(ResponseModel(id=job, status=Status.RECEIVED, description="received").model_dump_json())
        asyncio.ensure_future(self.job(job, request, blob)).add_done_callback(end_where_broken)

    async def job(self, job, request, blob):
        def tell(status, description, data=None):
            response = ResponseModel(id=job, status=status, description=description, data=data)
            socket = SOCKETS[request.session_id]
            if data is None:
                socket.write_message(response.model_dump_json())
            else:
                socket.write_message(response.pickle(), binary=True)

        tell(Status.QUEUED, "Added to Queue at position 1.")
        tell(Status.RUNNING, "running")
        try:
            result = await asyncio.get_running_loop().run_in_executor(WORKER, execute, request, blob)
        except Exception as e:  # noqa: BLE001
            tell(Status.ERROR, "".join(traceback.format_exception(type(e), e, clean_traceback(e.__traceback__))))
            return
        tell(Status.COMPLETED, "Your job has been completed.", result)


async def main():
    routes = {"/status": Deployments, "/env": Env, "/subscribe": Subscribe, "/request": Request}
    app = tornado.web.Application(list(routes.items()), websocket_max_message_size=1 << 30)
    server = app.listen(0, "127.0.0.1", max_buffer_size=1 << 30)
    print(next(iter(server._sockets.values())).getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    KEY = sys.argv[1]
    keys = [
        f"{WRAPPER}:{json.dumps({'repo_id': f, 'revision': None, 'task': 'text-generation'})}" for f in sys.argv[2:]
    ]
    MODELS = {key: TransformersModel.from_model_key(key, dispatch=True, dtype=torch.float32) for key in keys}
    asyncio.run(main())
