"""What a test or a benchmark needs to drive the explorer in Chromium and JupyterLab."""
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
CHROME = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-renderer-backgrounding",
    "--disable-gpu",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
PATIENCE = float(os.environ.get("BROWSER_PATIENCE", 400))  # seconds until anything has failed; busy machines need many
LAB = [
    "--no-browser",
    "--ip=127.0.0.1",
    "--allow-root",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]


@contextmanager
def chromium(profile: Path) -> Iterator[BrowserContext]:
    "Chromium without a GPU and without a network."
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, viewport=dict(width=1400, height=1000), args=CHROME
        )
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        context.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def jupyterlab(home: Path, command: list[str]) -> Iterator[Callable[[str], str]]:  # file -> its address
    "JupyterLab, started by a command, knowing nothing of the user's settings."
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {
        k: str(home / k.lower()) for k in ("IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    }
    notice = Path("jupyterlab_settings_dir", "@jupyterlab", "apputils-extension", "notification.jupyterlab-settings")
    (home / notice).parent.mkdir(parents=True)
    (home / notice).write_text('{"fetchNews": "false"}')
    port, token = free_port(), secrets.token_hex(8)
    environment = {**os.environ, **folders, "OMP_NUM_THREADS": "1"}
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(
            [*command, *LAB, f"--port={port}", f"--IdentityProvider.token={token}"],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "log.txt")
            yield lambda file: f"http://127.0.0.1:{port}/lab/tree/{file}?token={token}"
        finally:
            server.terminate()
            server.wait(20)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(3000):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()}")


def wait_for_kernel(page: Page) -> None:
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function(
        "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
    )


def run_all_cells(page: Page) -> None:
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
