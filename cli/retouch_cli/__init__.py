"""`retouch`: the command that a person types."""
