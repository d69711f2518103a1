"""The sans-IO packet processor: no socket, no clock, no log, no thread.

Everything comes in as an argument (a packet's bytes, the time as `now`, chance as a seed) and goes
out as a return value or a counter.
"""
