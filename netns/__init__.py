"""`make lab-up`: the lab of `featherlb.lab` to play in, from the command line."""
