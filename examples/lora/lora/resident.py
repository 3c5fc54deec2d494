"""The app of client_app.py, computed by one process on each node, which loads the language model once."""

from solon_fl.resident import resident

app = resident("lora.client_app:app")
