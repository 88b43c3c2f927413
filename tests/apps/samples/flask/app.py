from flask import Flask, redirect, session, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.secret_key = "a sample's"
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)


@app.get("/")
def index():
    return f'<p id="text">pressed {session.get("count", 0)}</p><form method="post"><button>press</button></form>'


@app.post("/")
def press():
    session["count"] = session.get("count", 0) + 42
    return redirect(url_for("index"))
