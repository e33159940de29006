"""A web server of a folder, in a thread, that fails when told to."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Server(ThreadingHTTPServer):
    """Counts the requests of each path; `faults[path]` are taken one a request: a status, cut, or silent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: Counter[str] = Counter()
        self.faults: defaultdict[str, list[int | str]] = defaultdict(list)


class _Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.requests[name] += 1
        fault = self.server.faults[name].pop(0) if self.server.faults[name] else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "cut":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        elif fault == "silent":
            time.sleep(0.4)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The server, while the block runs."""
    server = Server(folder)
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
