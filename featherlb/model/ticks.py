"""The unit of the core's clock: flows, pools and persistence count time in ticks of 0.1 s."""

TICKS_PER_SECOND = 10
