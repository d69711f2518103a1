"""The runtime API: HTTP and JSON on a Unix socket, and on TCP where it is configured.

`schema` says what is asked and answered, `server` answers, `client` asks. docs/api.md
describes it for other programs.
"""
