import panel

button, text = panel.widgets.Button(name="press"), panel.pane.Markdown("waiting")
button.on_click(lambda _: setattr(text, "object", f"pressed {6 * 7}"))
panel.Column(button, text).servable()
