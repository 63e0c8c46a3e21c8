"""`retouch.v1`: see image_edit.proto, the contract itself."""
