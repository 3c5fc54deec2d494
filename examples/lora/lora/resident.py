"""The app of client_app.py, computed by one process for each node: the language model is loaded once."""

from solon_fl.resident import resident

app = resident("lora.client_app:app")
