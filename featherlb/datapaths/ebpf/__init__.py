"""The datapath ebpf: as nfqueue, but a program in the kernel carries the packets of open flows."""
