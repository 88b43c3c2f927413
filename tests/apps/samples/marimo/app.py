import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo

    button = mo.ui.button(label="press", value=0, on_click=lambda value: value + 42)
    button
    return button, mo


@app.cell
def _(button, mo):
    mo.md(f"pressed {button.value}")
    return


if __name__ == "__main__":
    app.run()
