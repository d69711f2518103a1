"""The runtime API: HTTP and JSON on a Unix socket and, if configured, on TCP.

`schema` defines requests and responses; docs/api.md describes them for other programs.
"""
