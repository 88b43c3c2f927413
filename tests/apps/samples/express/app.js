const express = require("express");

const app = express();
app.get("/", (request, response) => response.send('<a href="linked">link</a>'));
app.get("/linked", (request, response) => response.send("<h1>linked page</h1>"));
app.listen(process.env.PORT, "127.0.0.1");
