"""How packets get to the core and leave it: a folder for each datapath."""
