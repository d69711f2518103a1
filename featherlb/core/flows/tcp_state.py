"""The states of a flow as one table of transitions, and the timeout class of each state.

A middlebox sees both directions but is neither end, so these are the states of a tracker, not of
RFC 9293: whether the handshake completed, who has sent a FIN, and whether a RST ended the
connection. The table is read as `TRANSITIONS[state][direction][event]`.

    NEW ─SYN→ SYN_SENT ─SYN-ACK← SYN_RECEIVED ─ACK→ ESTABLISHED
    ESTABLISHED ─FIN→ FIN_WAIT ─FIN← CLOSING          (the client closes first)
    ESTABLISHED ─FIN← CLOSE_WAIT ─FIN→ CLOSING        (the backend closes first)
    any ─RST→ or ─RST← CLOSED
    SYN_SENT ─SYN→ SYN_RETRIED ─SYN-ACK← SYN_RECEIVED (the backend was slow)
    NEW ─ACK→ ADOPTED ─ACK← ESTABLISHED               (from before, or from another node)

An adopted connection is half-open until its backend has sent something other than a RST: anybody
can send an ACK.

Segments whose sequence numbers can't be right are no events (`windows.py`). A connection that was
reset returns to ESTABLISHED when both ends send something else than RSTs: a RST that was in flight
may be none to its receiver (RFC 5961 section 3.2).

REPLACED is no event's work: core/path/redispatch.py gives the client another backend. Neither is
REPLICA, the state of a flow that another node has: core/path/replicas.py gives it its own again.

UDP has no connections to follow. UDP_ONE_WAY turns into UDP_TWO_WAY when the backend answers.
"""

from enum import IntEnum


class State(IntEnum):
    """The state of a tracked flow. Those in `ACTIVE` count as load of their backend."""

    NEW = 0
    SYN_SENT = 1
    SYN_RECEIVED = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    CLOSING = 6
    CLOSED = 7
    UDP_ONE_WAY = 8
    UDP_TWO_WAY = 9
    SYN_RETRIED = 10
    ADOPTED = 11
    REPLACED = 12
    REPLICA = 13


class Event(IntEnum):
    """What a TCP segment means to the tracker, in the order of precedence RST, SYN, FIN; every
    UDP datagram counts as the last one."""

    SYN = 0
    SYN_ACK = 1
    FIN = 2
    RST = 3
    ACK = 4


class TimeoutClass(IntEnum):
    """Groups of states that share a timeout; in the order in which a full table evicts them."""

    CLOSED = 0
    HALF_OPEN = 1
    UDP_ONE_WAY = 2
    FIN = 3
    UDP_TWO_WAY = 4
    ESTABLISHED = 5
    OFFLOADED = 6
    """Flows in any state that the kernel forwards and expires."""


FORWARD = 0
REPLY = 1

(
    _NEW,
    _SENT,
    _RECV,
    _ESTAB,
    _FIN,
    _CLOSEW,
    _CLOSING,
    _CLOSED,
    _ONE,
    _TWO,
    _RETRY,
    _ADOPT,
    _REPL,
    _COPY,
) = State

# fmt: off
#              direction      SYN      SYN-ACK  FIN       RST      other
TRANSITIONS: tuple[tuple[tuple[State, ...], tuple[State, ...]], ...] = (
    # NEW: the first packet comes from the client; mid-stream ones are adopted flows
    (          (             _SENT,   _ADOPT,  _ADOPT,   _CLOSED, _ADOPT  ),
               (             _NEW,    _NEW,    _NEW,     _CLOSED, _NEW    )),
    # SYN_SENT
    (          (             _RETRY,  _SENT,   _SENT,    _CLOSED, _SENT   ),
               (             _SENT,   _RECV,   _SENT,    _CLOSED, _SENT   )),
    # SYN_RECEIVED: only the client's ACK completes the handshake
    (          (             _RECV,   _RECV,   _FIN,     _CLOSED, _ESTAB  ),
               (             _RECV,   _RECV,   _CLOSEW,  _CLOSED, _RECV   )),
    # ESTABLISHED
    (          (             _ESTAB,  _ESTAB,  _FIN,     _CLOSED, _ESTAB  ),
               (             _ESTAB,  _ESTAB,  _CLOSEW,  _CLOSED, _ESTAB  )),
    # FIN_WAIT: the client has closed its direction
    (          (             _FIN,    _FIN,    _FIN,     _CLOSED, _FIN    ),
               (             _FIN,    _FIN,    _CLOSING, _CLOSED, _FIN    )),
    # CLOSE_WAIT: the backend has closed its direction
    (          (             _CLOSEW, _CLOSEW, _CLOSING, _CLOSED, _CLOSEW ),
               (             _CLOSEW, _CLOSEW, _CLOSEW,  _CLOSED, _CLOSEW )),
    # CLOSING: both have closed, the last acknowledgements are in flight
    (          (             _CLOSING, _CLOSING, _CLOSING, _CLOSED, _CLOSING ),
               (             _CLOSING, _CLOSING, _CLOSING, _CLOSED, _CLOSING )),
    # CLOSED: reset; late segments are still translated
    (          (             _CLOSED, _CLOSED, _CLOSED,  _CLOSED, _CLOSED ),
               (             _CLOSED, _CLOSED, _CLOSED,  _CLOSED, _CLOSED )),
    # UDP_ONE_WAY: only the client has sent
    (          (             _ONE,    _ONE,    _ONE,     _ONE,    _ONE    ),
               (             _TWO,    _TWO,    _TWO,     _TWO,    _TWO    )),
    # UDP_TWO_WAY: the backend has answered
    (          (             _TWO,    _TWO,    _TWO,     _TWO,    _TWO    ),
               (             _TWO,    _TWO,    _TWO,     _TWO,    _TWO    )),
    # SYN_RETRIED: SYN_SENT, but the client has retransmitted its SYN
    (          (             _RETRY,  _RETRY,  _RETRY,   _CLOSED, _RETRY  ),
               (             _RETRY,  _RECV,   _RETRY,   _CLOSED, _RETRY  )),
    # ADOPTED: the client sent a mid-stream segment; only the backend can confirm the connection
    (          (             _SENT,   _ADOPT,  _ADOPT,   _CLOSED, _ADOPT  ),
               (             _ADOPT,  _RECV,   _CLOSEW,  _CLOSED, _ESTAB  )),
    # REPLACED: the client is at another backend; late answers are refused before they get here
    (          (             _REPL,   _REPL,   _REPL,    _REPL,   _REPL   ),
               (             _REPL,   _REPL,   _REPL,    _REPL,   _REPL   )),
    # REPLICA: another node follows the connection
    (          (             _COPY,   _COPY,   _COPY,    _COPY,   _COPY   ),
               (             _COPY,   _COPY,   _COPY,    _COPY,   _COPY   )),
)
# fmt: on

TIMEOUT_CLASS: dict[State, TimeoutClass] = {
    State.NEW: TimeoutClass.HALF_OPEN,
    State.SYN_SENT: TimeoutClass.HALF_OPEN,
    State.SYN_RETRIED: TimeoutClass.HALF_OPEN,
    State.SYN_RECEIVED: TimeoutClass.HALF_OPEN,
    State.ADOPTED: TimeoutClass.HALF_OPEN,
    State.REPLACED: TimeoutClass.HALF_OPEN,
    State.ESTABLISHED: TimeoutClass.ESTABLISHED,
    State.FIN_WAIT: TimeoutClass.FIN,
    State.CLOSE_WAIT: TimeoutClass.FIN,
    State.CLOSING: TimeoutClass.CLOSED,
    State.CLOSED: TimeoutClass.CLOSED,
    State.UDP_ONE_WAY: TimeoutClass.UDP_ONE_WAY,
    State.UDP_TWO_WAY: TimeoutClass.UDP_TWO_WAY,
    State.REPLICA: TimeoutClass.ESTABLISHED,
}

ACTIVE = frozenset(
    {
        State.SYN_SENT,
        State.SYN_RETRIED,
        State.SYN_RECEIVED,
        State.ADOPTED,
        State.ESTABLISHED,
        State.FIN_WAIT,
        State.UDP_ONE_WAY,
        State.UDP_TWO_WAY,
        State.REPLICA,
    }
)
"""States in which a flow counts as load of its backend (least-connections) and towards its limit. A
client that has closed its direction may wait for a long answer."""

REUSABLE = frozenset(
    {State.FIN_WAIT, State.CLOSE_WAIT, State.CLOSING, State.CLOSED, State.REPLACED}
)
"""States in which a new SYN of the same 5-tuple may be a new connection (`Lifecycle.is_over`)."""
