"""The datapath nfqueue: every packet passes an NFQUEUE."""
