"""The datapath raw: whole frames over AF_PACKET sockets."""
