"""An MLflow server small enough to be told when to hang: it takes what a client sends, and keeps it."""

import json
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class MlflowServer:
    """Runs in memory, as MLflow's JSON; artifacts go into a local folder.

    Attributes:
        uri: for `--tracking-uri`.
        runs: by id.
        lively: cleared, it takes connections and lets them wait.
        asked: paths of the calls that came, answered or not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, dict[str, Any]] = {}
        self.lively = threading.Event()
        self.lively.set()
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                self.answer(parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()})

            def do_POST(self) -> None:
                self.answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, path: str, asked: dict[str, Any]) -> None:
                outer.asked.append(path)
                outer.lively.wait()
                found = outer.call(path.rpartition("mlflow/")[2], asked)
                content = json.dumps(
                    {"error_code": "RESOURCE_DOES_NOT_EXIST"} if found is None else found
                ).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let go of those that wait."""
        self.lively.set()
        self._http.shutdown()
        self._http.server_close()

    def call(self, name: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """What MLflow answers; None: there is no such thing."""
        run = self.runs.get(asked.get("run_id", ""))
        match name:
            case "experiments/get-by-name":
                about = {"experiment_id": "1", "name": asked["experiment_name"], "lifecycle_stage": "active"}
                return {"experiment": about}
            case "runs/create":
                return {"run": self._create(asked)}
            case "runs/search":
                return {"runs": list(self.runs.values())}
            case "runs/get":
                return run and {"run": run}
            case "runs/update":
                assert run is not None, asked
                run["info"] |= {key: asked[key] for key in ("status", "end_time") if key in asked}
                return {"run_info": run["info"]}
            case "runs/log-batch":
                assert run is not None, asked
                for kind in ("metrics", "params", "tags"):
                    run["data"][kind] += asked.get(kind, [])
                return {}
            case "runs/set-tag":
                assert run is not None, asked
                run["data"]["tags"].append({"key": asked["key"], "value": asked["value"]})
                return {}
            case "metrics/get-history":
                assert run is not None, asked
                return {"metrics": [m for m in run["data"]["metrics"] if m["key"] == asked["metric_key"]]}
            case "experiments/search" | "runs/delete-tag" | "runs/log-inputs":
                return {}
        return None

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        run_id = uuid.uuid4().hex
        info = {
            "run_id": run_id,
            "run_name": asked["run_name"],
            "experiment_id": asked["experiment_id"],
            "status": "RUNNING",
            "start_time": asked["start_time"],
            "lifecycle_stage": "active",
            "artifact_uri": (self.folder / run_id).as_uri(),
        }
        data = {"metrics": [], "params": [], "tags": list(asked.get("tags", []))}
        self.runs[run_id] = {"info": info, "data": data}
        return self.runs[run_id]


@contextmanager
def silent_server() -> Iterator[str]:
    """URI of a server that takes every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
