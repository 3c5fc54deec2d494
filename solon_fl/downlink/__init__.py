"""The model's way down: patches that bring what nodes hold near the server's model, in a tenth of its bytes."""
