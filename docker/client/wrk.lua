-- Prints wrk's exact counts as one line of JSON, the last one of its output. Times are microseconds.

function done(summary, latency)
   local errors = summary.errors
   print(string.format(
      '{"requests": %d, "duration": %d, "p50": %d, "p75": %d, "p90": %d, "p99": %d, "p999": %d, '
         .. '"max": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(75),
      latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
