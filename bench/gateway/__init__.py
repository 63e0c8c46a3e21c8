"""What the gateway adds to an edit, beside the floor and its peers: `python -m bench.gateway`."""
