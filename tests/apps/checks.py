"""Use of each application of docs/apps.md as a person would: one function per line of the table, named after it.

Each gets the page of a browser, the URL that a person would open, and the job.
"""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.apps.job import AppJob

expect.set_options(timeout=30_000)

_PRESSED = re.compile(r"pressed 42")


def _button(page: Page, url: str, job: AppJob) -> None:
    """Press the page's button "press"; its program answers "pressed 42"."""
    page.goto(url)
    page.get_by_role("button", name="press").click()
    expect(page.get_by_text(_PRESSED).first).to_be_visible()


def _run_cell(page: Page, output: str) -> None:
    """Run the notebook's first cell and expect its result in the elements that `output` selects."""
    cell = page.locator(".jp-CodeCell .cm-content, .cell .CodeMirror").first
    cell.click()
    page.keyboard.press("Shift+Enter")
    expect(page.locator(output).first).to_contain_text("six times seven is 42")


def jupyterlab(page: Page, url: str, job: AppJob) -> None:
    page.add_locator_handler(page.locator(".jp-Dialog button").first, lambda button: button.click())
    page.goto(url)
    page.wait_for_selector(".jp-Launcher, .jp-FileBrowser")
    page.goto(page.url.partition("/lab")[0] + "/lab/tree/nb.ipynb")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    _run_cell(page, ".jp-OutputArea-output")


def notebook(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    with page.expect_popup() as popup:
        page.get_by_text("nb.ipynb").first.dblclick()
    popup.value.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    _run_cell(popup.value, ".jp-OutputArea-output")


def nbclassic(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    with page.expect_popup() as popup:
        page.get_by_text("nb.ipynb").first.click()
    popup.value.wait_for_selector(".kernel_idle_icon")
    _run_cell(popup.value, ".output_stdout")


voila = streamlit = dash = bokeh = panel = marimo = _button
shiny_for_python = r_shiny = nicegui = flask = _button


def gradio(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.get_by_role("button", name="press").click()
    expect(page.get_by_label("text")).to_have_value("pressed 42")


def fastapi(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.locator("#text")).to_have_text(_PRESSED)
    express(page, url, job)


def express(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.get_by_role("link").click()
    expect(page.get_by_role("heading")).to_have_text("linked page")


def django(page: Page, url: str, job: AppJob) -> None:
    page.goto(url + "admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("42")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("link", name="Users")).to_be_visible()


def tensorboard(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.get_by_text("a_curve").first).to_be_visible()


def mlflow(page: Page, url: str, job: AppJob) -> None:
    page.goto(url + "#/experiments")
    page.get_by_role("button", name="Create", exact=False).first.click()
    page.get_by_role("dialog").get_by_role("textbox").first.fill("an experiment of 42")
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    expect(page.get_by_text("an experiment of 42").first).to_be_visible()


def vite_dev_server(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.locator("#text")).to_have_text(_PRESSED)
    job.write("main.js", b'document.getElementById("text").textContent = "changed";\n')
    expect(page.locator("#text")).to_have_text("changed")
    job.write("main.js", b'document.getElementById("text").textContent = "pressed 42";\n')


def datasette(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.get_by_role("link", name="sample").first.click()
    page.get_by_role("link", name="answers").first.click()
    expect(page.get_by_role("cell", name="42")).to_be_visible()


def optuna_dashboard(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.get_by_text("a study").first.click()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible()


def novnc(page: Page, url: str, job: AppJob) -> None:
    """Type into the xterm that VNC shows."""
    page.goto(url + "vnc.html?autoconnect=1&path=" + url.split("/", 3)[3] + "websockify")
    canvas = page.locator("canvas")
    expect(canvas).to_be_visible()
    canvas.click()
    typed(page, job)


def typed(page: Page, job: AppJob) -> None:
    """Type a command into the terminal in focus until its file is there."""
    for _ in range(20):
        page.keyboard.type("echo $((6*7)) > typed.txt\n")
        page.wait_for_timeout(500)
        if job.has("typed.txt"):
            assert job.read("typed.txt") == b"42\n"
            return
    raise AssertionError("what was typed did not reach the shell")


def shell_in_a_box(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.locator("#vt100, body").first.click()
    typed(page, job)


def wetty(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.locator(".xterm-screen").click()
    typed(page, job)


def gritty(page: Page, url: str, job: AppJob) -> None:
    wetty(page, url, job)


def cloud_commander(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.locator('[data-name="js-fs"], .fm').first).to_be_visible()


def node_red(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.wait_for_selector(".red-ui-palette-node")
    expect(page.get_by_text("Deploy").first).to_be_visible()


def copyparty(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.locator('a[href$="hello.txt"] >> visible=true').first).to_be_visible()


def glances(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    expect(page.get_by_text("CPU").first).to_be_visible()


def code_server(page: Page, url: str, job: AppJob) -> None:
    page.goto(url)
    page.locator(".monaco-workbench").wait_for()
    page.keyboard.press("Control+Backquote")
    page.locator(".terminal.xterm").click()
    typed(page, job)
