from shiny import App, reactive, render, ui

page = ui.page_fluid(ui.input_action_button("button", "press"), ui.output_text("text"))


def server(inputs, outputs, session):
    @render.text
    @reactive.event(inputs.button)
    def text():
        return f"pressed {inputs.button() * 42}"


app = App(page, server)
