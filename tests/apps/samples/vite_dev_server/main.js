document.getElementById("text").textContent = "pressed 42";
