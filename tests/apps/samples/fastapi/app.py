from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import HTMLResponse

app = FastAPI()
PAGE = """<a href="{link}">link</a><p id="text">waiting</p><script>
const socket = new WebSocket(new URL("ws", location.href.replace(/^http/, "ws")));
socket.onmessage = event => document.getElementById("text").textContent = event.data;
</script>"""


@app.get("/", response_class=HTMLResponse)
def index(request: Request) -> str:
    return PAGE.format(link=request.url_for("linked"))


@app.get("/linked", name="linked", response_class=HTMLResponse)
def linked() -> str:
    return "<h1>linked page</h1>"


@app.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"pressed {6 * 7}")
    await websocket.receive()
