from dash import Dash, Input, Output, callback, html

app = Dash()
app.layout = html.Div([html.Button("press", id="button"), html.P(id="text")])


@callback(Output("text", "children"), Input("button", "n_clicks"), prevent_initial_call=True)
def press(clicks: int) -> str:
    return f"pressed {clicks * 42}"


app.run()
