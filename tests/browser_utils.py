# Copyright 2026 The hf_twins team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A browser, and static Spaces served as by the Hub, with the CDN's files from `tests/node_modules`."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from playwright.sync_api import Browser, Route, sync_playwright


NODE_MODULES = Path(__file__).parent / "node_modules"
CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/((?:@[\w-]+/)?[\w.-]+)@([\w.-]+)/([\w./-]+)")


@contextmanager
def launch_chromium(*arguments: str) -> Iterator[Browser]:
    """Launch Chromium; skip the test if it is not installed."""
    names = ("chromium", "google-chrome", "chromium-browser")
    executable = next((path for path in map(shutil.which, names) if path), None)
    if executable is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


def npm_package(name: str) -> Path:
    """Return the folder of an npm package; skip the test if it is not installed."""
    folder = NODE_MODULES / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not installed: run tests/install_npm_packages, which needs npm")
    return folder


def axe_script() -> str | None:
    """axe-core's script, if it is installed."""
    file = NODE_MODULES / "axe-core" / "axe.min.js"
    return file.read_text(encoding="utf-8") if file.is_file() else None


@contextmanager
def serve_static_spaces(root: Path) -> Iterator[str]:
    """Serve a folder of static Spaces, each with the headers in its card, and yield the URL."""
    headers = {folder.name: RepoCard.load(folder / "README.md").data.custom_headers for folder in root.iterdir()}

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.get(self.path.split("/")[1], {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def answer_as_cdn(route: Route) -> None:
    """Answer a request to jsDelivr with the file of the installed package, if the version matches."""
    parts = CDN.fullmatch(route.request.url)
    assert parts, route.request.url
    package = npm_package(parts[1])
    installed = json.loads((package / "package.json").read_text())["version"]
    assert installed == parts[2], f"{parts[1]} {parts[2]} is asked for, {installed} is installed"
    headers = {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
    route.fulfill(path=package / parts[3], headers=headers)
