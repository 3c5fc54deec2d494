"""The app of client_app.py, computed by one process for each node if the setting "resident" says so."""

from solon_fl.resident import resident

app = resident("fashion_mnist.client_app:app")
