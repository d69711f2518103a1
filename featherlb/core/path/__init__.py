"""The path of a packet: parse, look up, admit, schedule, route, translate."""
