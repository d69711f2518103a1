"""One kernel facility a module: netlink, netfilter, sockets, /proc. No policy."""
