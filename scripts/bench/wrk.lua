-- Prints wrk's exact counts as one line of JSON. BENCH_TARGETS holds "ADDRESS:PORT ..." to which
-- the threads connect in turn, whatever the URL says.
-- There is no request() here: wrk then sends the same prepared bytes every time.

local targets = {}
for address, port in os.getenv("BENCH_TARGETS"):gmatch("(%S+):(%d+)") do
   targets[#targets + 1] = { address, port }
end

local threads = 0

function setup(thread)
   local target = targets[threads % #targets + 1]
   thread.addr = wrk.lookup(target[1], target[2])[1]
   threads = threads + 1
end

function done(summary, latency)
   local errors = summary.errors
   print(string.format(
      '{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "errors": %d}',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
