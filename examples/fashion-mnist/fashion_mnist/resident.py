"""The app of client_app.py, computed by one process on each node if the setting "resident" is true."""

from solon_fl.resident import resident

app = resident("fashion_mnist.client_app:app")
