"""The downlink: patches that bring the nodes' copies near the server's model, in a tenth of its bytes."""
