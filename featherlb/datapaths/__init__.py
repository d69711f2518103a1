"""How packets reach the core and leave it: a folder for each datapath."""
