"""The benchmark: featherlb and its peers, measured in the lab in the same run (`make bench`).

docs/benchmarks.md says how to run it and how to read it. One job a module: `figures` (what is
measured and quoted), `summary` (medians and ratios), `report` (Markdown), `plot` (PNG), `parse`
(what the load generators print), `load` (runs them), `servers` (behind the balancers), `peers`
(the balancers), `cost` (CPU and memory), `facts` (the machine), `run` (rounds), `core` (the
packet processor alone, without a kernel).
"""
