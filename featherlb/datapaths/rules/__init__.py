"""The parts that the rule sets of all datapaths share."""
