from bokeh.io import curdoc
from bokeh.layouts import column
from bokeh.models import Button, Div

button, text = Button(label="press"), Div(text="waiting")
button.on_click(lambda: setattr(text, "text", f"pressed {6 * 7}"))
curdoc().add_root(column(button, text))
