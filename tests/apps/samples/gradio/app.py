import gradio

with gradio.Blocks() as app:
    text = gradio.Textbox(label="text")
    gradio.Button("press").click(lambda: f"pressed {6 * 7}", outputs=text)
app.launch()
