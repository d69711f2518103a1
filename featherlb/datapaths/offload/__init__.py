"""The datapath offload: Python chooses the backend, conntrack translates."""
