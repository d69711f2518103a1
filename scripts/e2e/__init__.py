"""The end-to-end test: the compose files at the top, under load, counted on both sides."""
