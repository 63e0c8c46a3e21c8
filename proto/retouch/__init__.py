"""Generated code of the public contract, `retouch.v1`."""
