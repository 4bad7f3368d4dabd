"""A server that is already running, over HTTP. Nothing here starts an engine."""
