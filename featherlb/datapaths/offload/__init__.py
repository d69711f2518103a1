"""The datapath offload: Python decides, the kernel's connection tracking forwards."""
