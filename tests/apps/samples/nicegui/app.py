import os

from nicegui import ui


@ui.page("/")
def index():
    text = ui.label("waiting")
    ui.button("press", on_click=lambda: text.set_text(f"pressed {6 * 7}"))


ui.run(host="127.0.0.1", port=int(os.environ["PORT"]), show=False, reload=False)
