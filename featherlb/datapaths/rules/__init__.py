"""What the rule sets of all datapaths are made of."""
