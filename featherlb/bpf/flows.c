/* The datapath ebpf: translates the packets of known flows where they enter a link.
 *
 * It carries what a worker has given it, and what it has opened itself from tables that a worker
 * keeps. Every packet that it doesn't carry continues as if it weren't there (TC_ACT_UNSPEC) and
 * gets to the worker's queue. So whatever is
 * rare or difficult has one implementation, in Python: opening flows, IP options, fragments, ICMP,
 * what is too long for its path, clients and backends on this host.
 *
 * A flow is an entry in an array that the workers have mapped. While an entry is `live`, only this
 * program changes its lower half; several CPUs may do so at once. The state machine is that of
 * featherlb/core/flows/tcp_state.py, the judgement on sequence numbers that of
 * featherlb/core/flows/windows.py.
 */

#include "kernel.h"

/* A flow: 128 bytes, two cache lines, the first of which never changes while it is live. Addresses
 * are in network byte order, IPv4 in its mapped form (RFC 4291 section 2.5.5.2). An index of 0 or 1
 * is a direction: forward, reply; or an end: the client, the backend. */
struct entry {
	be32 client[4];
	be32 vip[4];
	be32 backend[4];
	be32 source[4];		/* the client as the backend sees it */
	be32 ports;		/* client's, VIP's: as in the header of a packet */
	be32 reply_ports;	/* backend's, source's */
	u8 live;		/* 0: the worker has it */
	u8 quiet;		/* a bare ACK of the backend answers a probe, and is no activity */
	u8 options;		/* enum option */
	u8 worker;		/* whose ring gets its events */
	u32 state;		/* enum state, with the bits below; changed by compare-and-swap */
	u32 expected[2];	/* the next sequence number that an end expects */
	u32 ends[2];		/* behind what an end has sent */
	u32 seen;		/* of the last packet: 0.1 s of CLOCK_MONOTONIC */
	u32 packets[2];
	u8 protocol;
	u8 scales;		/* window scales: client << 4 | backend */
	u16 member;		/* its worker's number of it */
	u64 bytes[2];		/* of IP packets */
};
SIZE_CHECK(struct entry, 128);

enum option {
	LIFT_SYN_ACK = 1 << 0,	/* the worker lowers the segment size in SYN-ACKs */
	IPV6 = 1 << 1,
};

/* featherlb/core/flows/tcp_state.py. Flows in other states are never live. */
enum state {
	SYN_SENT = 1,
	SYN_RECEIVED = 2,
	ESTABLISHED = 3,
	FIN_WAIT = 4,
	CLOSE_WAIT = 5,
	CLOSING = 6,
	CLOSED = 7,
	UDP_ONE_WAY = 8,
	UDP_TWO_WAY = 9,
	SYN_RETRIED = 10,

	STATE = 0xFF,
	CLIENT_SPOKE = 1 << 8,		/* CLOSED: it has sent something since the RST */
	BACKEND_SPOKE = 1 << 9,
	RESET_BY_BACKEND = 1 << 10,	/* CLOSED: whose RST it was */
	DOUBTFUL = 1 << 16,		/* one segment whose sequence numbers can't be right */
};

struct tuple4 {
	be32 src;
	be32 dst;
	be32 ports;
	u8 protocol;
	u8 zero[3];
};
SIZE_CHECK(struct tuple4, 16);

struct tuple6 {
	be32 src[4];
	be32 dst[4];
	be32 ports;
	u8 protocol;
	u8 zero[3];
};
SIZE_CHECK(struct tuple6, 40);

/* What a worker has told of a packet's destination: a VIP's port leads to the number of its service
 * among those of all workers; a backend's to 0. So does an address of this host, without a port. */
struct place {
	be32 address[4];
	be16 port;
	u8 protocol;
	u8 worker;	/* every worker tells of its own flows */
};
SIZE_CHECK(struct place, 20);

/* How flows of a service are opened. The worker writes another table elsewhere and has it used by
 * one store. */
struct service {
	u32 how;	/* enum how */
	u32 cursor;	/* slots used, or drawn, so far; modulo 2^32 */
	u64 table;	/* its first row << 32 | its slots */
	u32 hash[8];	/* BLAKE2s, after the key's block; or a seed for draws */
	u32 zero[4];
};
SIZE_CHECK(struct service, 64);

enum how {
	BY_WORKER = 0,	/* they aren't, here */
	IN_TURN = 1,	/* the next slot */
	AT_RANDOM = 2,	/* any slot */
	BY_LOAD = 3,	/* of two slots at random, that of the member with less load */
	BY_CLIENT = 4,	/* the slot to which the client's address hashes */
	BY_TUPLE = 5,	/* addresses, ports and protocol */
};

/* A backend of one service. */
struct member {
	be32 address[4];
	be16 port;
	u16 usable;
	u32 active;	/* its open flows; the worker corrects it every 0.1 s */
	u32 weight;
	u32 repeated[2];	/* segments whose data came again, from clients and from it */
	u32 zero;
};
SIZE_CHECK(struct member, 40);

/* Numbers of entries for flows that are opened here: the worker adds them at the head, and they are
 * taken at the tail. */
struct queue {
	u32 head;
	u32 tail;
};
SIZE_CHECK(struct queue, 8);

/* What each worker has. The numbers of its services and members start at its own multiples. */
#define SERVICES 256
#define MEMBERS 4096
#define PLACES 8192
#define ROWS (1 << 18)
#define SPARE 16384
/* A row of tables has four slots of 16 bits: the number of a member, plus 1; 0 where the worker is to
 * choose. */
#define SLOTS_OF_ROW 4
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define SHIFT_OF(slot) ((slot) % SLOTS_OF_ROW * 16)
#else
#define SHIFT_OF(slot) (48 - (slot) % SLOTS_OF_ROW * 16)
#endif

/* If `limit` is not 0 and the heart of featherlb has not beaten for as long (ns), nothing is
 * carried. The rest says which worker has a client's flows (featherlb/model/shard.py): without a
 * mask, by its whole address and its port. */
struct control {
	u64 beat;
	u64 limit;
	u32 workers;
	u32 start;
	be32 mask4;
	be32 mask6[4];
	u32 zero;
};
SIZE_CHECK(struct control, 48);

/* A change of state. */
struct event {
	u32 index;
	u8 before;
	u8 after;
	u16 zero;
	u64 time;	/* ns of CLOCK_MONOTONIC */
};
SIZE_CHECK(struct event, 16);

/* A flow that was opened here (`before` and `after` as above, `before` is 0), with the headers of its
 * first packet. If `after` is 0 as well, it was not: the entry is to be used again. */
struct opening {
	struct event event;
	u8 headers[112];
};
SIZE_CHECK(struct opening, 128);

/* Why packets of known flows are left to the worker. */
enum why {
	CARRIED = -1,	/* they aren't */
	TAKEN,		/* the worker has the flow */
	OPENING,	/* a SYN, or an answer to one that isn't a plain SYN-ACK */
	UNUSUAL,	/* flags that no stack sends, lengths that can't be, a RST with data */
	LAST_HOP,	/* its TTL has run out */
	TOO_LONG,	/* for the path */
	NO_ROUTE,	/* none, or to this host */
	NO_BEAT,	/* featherlb's heart has stopped */
	WHYS,
};

/* The numbers of elements are those of a test: the real ones depend on the configuration. */
MAP(flows4) = { MAP_HASH, sizeof(struct tuple4), sizeof(u32), 1024, NO_PREALLOC };
MAP(flows6) = { MAP_HASH, sizeof(struct tuple6), sizeof(u32), 1024, NO_PREALLOC };
MAP(entries) = { MAP_ARRAY, sizeof(u32), sizeof(struct entry), 512, MMAPABLE };
MAP(events) = { MAP_ARRAY_OF_MAPS, sizeof(u32), sizeof(u32), 256, 0 };
MAP(reasons) = { MAP_PERCPU_ARRAY, sizeof(u32), sizeof(u64), WHYS, 0 };
MAP(places) = { MAP_HASH, sizeof(struct place), sizeof(u32), PLACES, NO_PREALLOC };
MAP(direct) = { MAP_LRU_HASH, sizeof(struct tuple6), sizeof(u64), 16384, 0 };
MAP(services) = { MAP_ARRAY, sizeof(u32), sizeof(struct service), SERVICES, MMAPABLE };
MAP(members) = { MAP_ARRAY, sizeof(u32), sizeof(struct member), MEMBERS, MMAPABLE };
MAP(rows) = { MAP_ARRAY, sizeof(u32), sizeof(u64), ROWS, MMAPABLE };
MAP(spare) = { MAP_ARRAY, sizeof(u32), sizeof(u64), SPARE, MMAPABLE };
MAP(queue) = { MAP_ARRAY, sizeof(u32), sizeof(struct queue), 1, MMAPABLE };
MAP(control) = { MAP_ARRAY, sizeof(u32), sizeof(struct control), 1, MMAPABLE };

char _license[] SEC("license") = "GPL";

/* A packet, as far as both families have it. */
struct packet {
	u32 network;	/* offset of the IP header */
	u32 transport;	/* and of the TCP or UDP header */
	u32 length;	/* of the IP packet, in bytes; of a super-packet, all of it */
	u32 gso_size;
	be32 ports;
	u8 protocol;
	u8 ttl;
	u8 traffic_class;
	/* TCP */
	u8 flags;
	u32 sequence;
	u32 acknowledgement;
	u32 header;	/* bytes */
	/* its checksum covers the addresses; 0 if it has none */
	be16 check;
	u32 pseudo_sum;	/* of the addresses as they are, TCP only */
	be32 src[4];	/* as in an entry */
	be32 dst[4];
};

#define SEQUENCE_FLAGS (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)
#define MAPPED BE32(0xFFFF)	/* in front of an IPv4 address, in 128 bits */
#define MAX_WINDOW 0xFFFFu
#define LARGEST_SCALE 14
#define TICK 100000000ull
#define ATTEMPTS 4	/* to change a state that other CPUs are changing, too */

/* One of two pointers, chosen by a branch: without CAP_PERFMON, the verifier permits no variable
 * offset into an entry. The compiler can't see through `asm`, and so makes none. */
#define CHOOSE(condition, one, other)                                                              \
	({                                                                                         \
		__typeof__(&*(one)) chosen_;                                                       \
		if (condition) {                                                                   \
			chosen_ = (one);                                                           \
			asm volatile("" : "+r"(chosen_));                                          \
		} else {                                                                           \
			chosen_ = (other);                                                         \
			asm volatile("" : "+r"(chosen_));                                          \
		}                                                                                  \
		chosen_;                                                                           \
	})

INLINE u32 fold32(u64 sum)
{
	sum = (sum & 0xFFFFFFFF) + (sum >> 32);
	return (sum & 0xFFFFFFFF) + (sum >> 32);
}

INLINE u16 fold16(u64 sum)
{
	u32 half = fold32(sum);

	half = (half & 0xFFFF) + (half >> 16);
	return (half & 0xFFFF) + (half >> 16);
}

/* Count a packet that is left to the worker. */
INLINE int lift(enum why why)
{
	u32 key = why;
	u64 *count = map_lookup_elem(&reasons, &key);

	if (count)
		(*count)++;
	return TC_ACT_UNSPEC;
}

INLINE void report(struct entry *entry, u32 index, u32 before, u32 after)
{
	struct event event = {
		.index = index,
		.before = before & STATE,
		.after = after & STATE,
		.time = ktime_get_ns(),
	};
	u32 worker = entry->worker;
	void *ring = map_lookup_elem(&events, &worker);

	/* A full ring loses it: the worker's sweep finds the state. */
	if (ring)
		ringbuf_output(ring, &event, sizeof(event), RB_NO_WAKEUP);
}

INLINE void doubt(struct entry *entry)
{
	__sync_fetch_and_add(&entry->state, DOUBTFUL);
}

/* The window scale in a SYN's options, -1 if there is none (`window_scale` in
 * featherlb/net/tcp_options.py). They are read one by one: without CAP_PERFMON, the verifier permits
 * no variable offset into a packet or the stack. */
INLINE int window_scale(struct __sk_buff *skb, u32 at, u32 length)
{
	u32 end = at + length;

#pragma clang loop unroll(disable)
	for (int i = 0; i < 40; i++) {
		u8 option[4] = {};	/* kind, size, value */

		if (at >= end || skb_load_bytes(skb, at, option, 1))
			return -1;
		if (option[0] == 1) {
			at++;
			continue;
		}
		if (!option[0] || at + 2 > end || skb_load_bytes(skb, at, option, 2))
			return -1;
		if (option[1] < 2 || at + option[1] > end)
			return -1;
		if (option[0] == 3) {
			if (option[1] != 3 || skb_load_bytes(skb, at, option, 3))
				return -1;
			return option[2] < LARGEST_SCALE ? option[2] : LARGEST_SCALE;
		}
		at += option[1];
	}
	return -1;
}

/* Whether a RST's checksum is right, or is still to be completed by a device. */
INLINE int is_intact(struct __sk_buff *skb, const struct packet *packet)
{
	be32 header[15] = {};
	u32 length = packet->header;
	u32 pseudo = packet->pseudo_sum;

	if (length < 20 || length > 60)
		return 0;
	if (skb_load_bytes(skb, packet->transport, header, length))
		return 0;
	if (packet->check == fold16(pseudo))
		return 1;
	return fold16((u64)pseudo + (u32)csum_diff(0, 0, header, sizeof(header), 0)) == 0xFFFF;
}

/* Note the backend's SYN-ACK; whether it acknowledges the client's SYN (windows.answer). */
INLINE int answer(struct __sk_buff *skb, struct entry *entry, const struct packet *packet)
{
	u32 expected = ONCE(entry->expected[1]);
	u32 following = packet->sequence + 1;
	u32 payload = packet->length - (packet->transport - packet->network) - packet->header;
	int scale;

	if (packet->acknowledgement - expected > ONCE(entry->ends[0]) - expected)
		return 0;
	scale = window_scale(skb, packet->transport + 20, packet->header - 20);
	entry->scales = entry->scales && scale >= 0 ? (entry->scales & 0xF0) | scale : 0;
	ONCE(entry->expected[1]) = packet->acknowledgement;
	ONCE(entry->expected[0]) = following;
	ONCE(entry->ends[1]) = following + payload;
	return 1;
}

/* Count a segment that came before. */
INLINE void count_repeated(struct entry *entry, u32 reply)
{
	u32 number = entry->worker * MEMBERS + entry->member;
	struct member *member;

	if (entry->member >= MEMBERS)
		return;
	member = map_lookup_elem(&members, &number);
	if (member)
		__sync_fetch_and_add(CHOOSE(reply, &member->repeated[1], &member->repeated[0]), 1);
}

/* Whether a segment without SYN and RST can be real (windows.admits). */
INLINE int admits(struct entry *entry, const struct packet *packet, u32 reply)
{
	u32 payload = packet->length - (packet->transport - packet->network) - packet->header;
	u32 end = packet->sequence + payload + (packet->flags & TCP_FIN ? 1 : 0);
	u32 *expects = CHOOSE(reply, &entry->expected[1], &entry->expected[0]);
	u32 *other_expects = CHOOSE(reply, &entry->expected[0], &entry->expected[1]);
	u32 *sent = CHOOSE(reply, &entry->ends[1], &entry->ends[0]);
	u32 *other_sent = CHOOSE(reply, &entry->ends[0], &entry->ends[1]);
	u32 mine = ONCE(*expects);
	u32 theirs = ONCE(*other_expects);
	u32 acknowledged = packet->acknowledgement - mine;
	u32 window = MAX_WINDOW << (entry->scales >> 4 * reply & 15);
	u32 reached = end - theirs;

	if (acknowledged <= ONCE(*other_sent) - mine) {
		if (reached <= window) {
			if (reached > ONCE(*sent) - theirs)
				ONCE(*sent) = end;
			else if (payload)
				count_repeated(entry, reply);
		} else if (-reached > window) {
			return 0;
		} else if (payload) {
			count_repeated(entry, reply);
		}
		if (acknowledged)
			ONCE(*expects) = packet->acknowledgement;
		return 1;
	}
	if (-acknowledged > MAX_WINDOW)
		return 0;
	return reached <= window || -reached <= window;
}

/* The state after an admitted segment or RST, with its bits. */
INLINE u32 next(u32 word, u8 flags, u32 reply)
{
	u32 state = word & STATE;
	u32 rest = word & ~STATE;

	if (flags & TCP_RST) {
		rest &= ~(CLIENT_SPOKE | BACKEND_SPOKE | RESET_BY_BACKEND);
		return rest | CLOSED | (reply ? RESET_BY_BACKEND : 0);
	}
	if (state == CLOSED) {
		rest |= reply ? BACKEND_SPOKE : CLIENT_SPOKE;
		if ((rest & CLIENT_SPOKE) && (rest & BACKEND_SPOKE))
			return rest | ESTABLISHED;
		return rest | CLOSED;
	}
	if (flags & TCP_FIN) {
		if (state == SYN_RECEIVED || state == ESTABLISHED)
			return rest | (reply ? CLOSE_WAIT : FIN_WAIT);
		if (state == (reply ? FIN_WAIT : CLOSE_WAIT))
			return rest | CLOSING;
	} else if (state == SYN_RECEIVED && !reply) {
		return rest | ESTABLISHED;
	}
	return word;
}

/* Have the entry follow a segment: CARRIED, or why it is left to the worker. */
INLINE int follow_tcp(struct __sk_buff *skb, struct entry *entry, u32 index,
		      const struct packet *packet, u32 reply)
{
	u8 flags = packet->flags;
	u32 word = ONCE(entry->state);
	u32 state = word & STATE;
	u32 before;

	if (flags & TCP_SYN) {
		if (!reply || flags != (TCP_SYN | TCP_ACK) || entry->options & LIFT_SYN_ACK)
			return OPENING;
		if (state == SYN_RECEIVED) {
			if (packet->sequence + 1 != ONCE(entry->expected[0]))
				return OPENING;
			count_repeated(entry, reply);
			return CARRIED;
		}
		if (state != SYN_SENT && state != SYN_RETRIED)
			return OPENING;
		if (!answer(skb, entry, packet))
			return OPENING;
		before = __sync_val_compare_and_swap(&entry->state, word,
						     (word & ~STATE) | SYN_RECEIVED);
		if (before == word)
			report(entry, index, word, SYN_RECEIVED);
		return CARRIED;
	}
	if (state < SYN_RECEIVED || state > CLOSED)
		return OPENING;
	if (flags & TCP_RST) {
		u32 *other_expects = CHOOSE(reply, &entry->expected[0], &entry->expected[1]);
		u32 *sent = CHOOSE(reply, &entry->ends[1], &entry->ends[0]);
		u32 theirs = ONCE(*other_expects);

		if (flags & TCP_FIN ||
		    packet->length != packet->transport - packet->network + packet->header)
			return UNUSUAL;
		if (packet->sequence - theirs > ONCE(*sent) - theirs ||
		    !is_intact(skb, packet)) {
			doubt(entry);
			return CARRIED;
		}
	} else {
		if (!(flags & TCP_ACK))
			return UNUSUAL;
		if (!admits(entry, packet, reply)) {
			if (flags & TCP_FIN || state == SYN_RECEIVED)
				doubt(entry);
			return CARRIED;
		}
	}
#pragma clang loop unroll(disable)
	for (int i = 0; i < ATTEMPTS; i++) {
		u32 after = next(word, flags, reply);

		if (after == word)
			break;
		before = __sync_val_compare_and_swap(&entry->state, word, after);
		if (before == word) {
			if ((after ^ word) & STATE)
				report(entry, index, word, after);
			break;
		}
		word = before;
	}
	return CARRIED;
}

INLINE int follow_udp(struct entry *entry, u32 index, u32 reply)
{
	u32 word = ONCE(entry->state);

	if (reply && (word & STATE) == UDP_ONE_WAY) {
		u32 after = (word & ~STATE) | UDP_TWO_WAY;

		if (__sync_val_compare_and_swap(&entry->state, word, after) == word)
			report(entry, index, word, after);
	}
	return CARRIED;
}

INLINE void count(struct entry *entry, const struct packet *packet, u64 now, u32 reply)
{
	__sync_fetch_and_add(CHOOSE(reply, &entry->packets[1], &entry->packets[0]), 1);
	__sync_fetch_and_add(CHOOSE(reply, &entry->bytes[1], &entry->bytes[0]), packet->length);
	if (UNLIKELY(entry->quiet)) {
		u32 headers = packet->transport - packet->network + packet->header;

		if (reply && packet->flags == TCP_ACK && packet->length == headers)
			return;
		entry->quiet = 0;
	}
	ONCE(entry->seen) = now / TICK;
}

/* Read the transport header at `at`, which the packet has room for. 0 if it can't be carried. */
INLINE int read_transport(struct packet *packet, void *at, void *end)
{
	u32 length = packet->length - (packet->transport - packet->network);

	if (packet->protocol == PROTO_TCP) {
		struct tcphdr *tcp = at;

		if ((void *)(tcp + 1) > end)
			return 0;
		packet->ports = *(be32 *)tcp;
		packet->sequence = BE32(tcp->seq);
		packet->acknowledgement = BE32(tcp->ack_seq);
		packet->header = tcp->doff >> 4 << 2;
		packet->flags = tcp->flags & SEQUENCE_FLAGS;
		packet->check = tcp->check;
		return packet->header >= sizeof(*tcp) && packet->header <= length;
	} else {
		struct udphdr *udp = at;

		if ((void *)(udp + 1) > end)
			return 0;
		packet->ports = *(be32 *)udp;
		packet->header = sizeof(*udp);
		packet->flags = 0;
		packet->check = udp->check;
		return packet->gso_size ||
		       (BE16(udp->len) >= sizeof(*udp) && BE16(udp->len) <= length);
	}
}

/* Make the packet's first bytes readable and writable in place; whether it has as many. */
INLINE int reach(struct __sk_buff *skb, u32 bytes)
{
	if (LIKELY((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end))
		return 1;
	return !skb_pull_data(skb, bytes);
}

/* The bytes of the longest packet that it is sent as. */
INLINE u32 segment_length(const struct packet *packet)
{
	if (!packet->gso_size)
		return packet->length;
	return packet->transport - packet->network + packet->header + packet->gso_size;
}

/* Update the transport checksum: by the sums of what changes in the addresses and the ports. */
INLINE int update_check(struct __sk_buff *skb, const struct packet *packet, u32 addresses, u32 ports)
{
	u32 at = packet->transport;
	u64 flags = 0;

	if (packet->protocol == PROTO_TCP) {
		at += __builtin_offsetof(struct tcphdr, check);
	} else {
		if (!packet->check)
			return 1;
		at += __builtin_offsetof(struct udphdr, check);
		flags = F_MARK_MANGLED_0;
	}
	/* A sum that a device completes later covers the addresses, but not the ports yet. */
	if (l4_csum_replace(skb, at, 0, addresses, flags | F_PSEUDO_HDR))
		return 0;
	return !ports || !l4_csum_replace(skb, at, 0, ports, flags);
}

INLINE int send(const struct bpf_fib_lookup *route)
{
	/* All of it must be initialised, or the verifier asks for CAP_PERFMON. */
	struct bpf_redir_neigh hop = {};

	hop.nh_family = route->family;
	hop.ipv6_nh[0] = route->ipv6_dst[0];
	hop.ipv6_nh[1] = route->ipv6_dst[1];
	hop.ipv6_nh[2] = route->ipv6_dst[2];
	hop.ipv6_nh[3] = route->ipv6_dst[3];
	/* Also where the neighbour's address is known: so the kernel keeps it up to date. */
	return redirect_neigh(route->ifindex, &hop, sizeof(hop), 0);
}

/* The routing decision that the kernel would take after the destination is rewritten. */
INLINE int find_route(struct __sk_buff *skb, const struct packet *packet,
		      struct bpf_fib_lookup *route)
{
	u32 length = segment_length(packet);
	long result;

	route->l4_protocol = packet->protocol;
	route->tot_len = length;
	route->ifindex = skb->ifindex;
	result = fib_lookup(skb, route, sizeof(*route), 0);
	if (result == FIB_SUCCESS || result == FIB_NO_NEIGH)
		return CARRIED;
	return result == FIB_FRAG_NEEDED ? TOO_LONG : NO_ROUTE;
}

INLINE int may_carry(u64 now)
{
	u32 key = 0;
	struct control *heart = map_lookup_elem(&control, &key);

	return heart && (!heart->limit || (long long)(now - heart->beat) <= (long long)heart->limit);
}

NOINLINE int follow(struct __sk_buff *skb, struct entry *entry, u32 index,
		  const struct packet *packet, u32 reply)
{
	if (packet->protocol == PROTO_TCP)
		return follow_tcp(skb, entry, index, packet, reply);
	return follow_udp(entry, index, reply);
}

INLINE int are_equal(const be32 *one, const be32 *other)
{
	return !((one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) |
		 (one[3] ^ other[3]));
}

/* The difference that replacing an address makes to a ones' complement sum. */
INLINE u64 difference(const be32 *before, const be32 *after)
{
	return (u64)(u32)~before[0] + (u32)~before[1] + (u32)~before[2] + (u32)~before[3] +
	       after[0] + after[1] + after[2] + after[3];
}

INLINE void copy_address(be32 *to, const be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/* Write the headers. In the IPv4 header, the sum changes by that of the addresses, and by one hop. */
INLINE int rewrite4(struct __sk_buff *skb, const u32 link_header, const be32 *src, const be32 *dst,
		    be32 ports, u32 addresses)
{
	struct iphdr *ip;

	if (!reach(skb, link_header + sizeof(*ip) + sizeof(ports)))
		return 0;
	ip = (void *)(long)skb->data + link_header;
	if ((void *)(ip + 1) + sizeof(ports) > (void *)(long)skb->data_end)
		return 0;
	/* RFC 1624 equation 3; the TTL is the upper half of its word. */
	ip->check = ~fold16((u64)(u16)~ip->check + addresses + (u16)~BE16(0x0100));
	ip->ttl--;
	ip->saddr = src[3];
	ip->daddr = dst[3];
	*(be32 *)(ip + 1) = ports;
	return 1;
}

INLINE int rewrite6(struct __sk_buff *skb, const u32 link_header, const be32 *src, const be32 *dst,
		    be32 ports)
{
	struct ipv6hdr *ip;

	if (!reach(skb, link_header + sizeof(*ip) + sizeof(ports)))
		return 0;
	ip = (void *)(long)skb->data + link_header;
	if ((void *)(ip + 1) + sizeof(ports) > (void *)(long)skb->data_end)
		return 0;
	ip->hop_limit--;
	copy_address(ip->saddr, src);
	copy_address(ip->daddr, dst);
	*(be32 *)(ip + 1) = ports;
	return 1;
}

/* Carry a packet of a live flow, which it may have opened. */
INLINE int carry(struct __sk_buff *skb, const u32 link_header, struct entry *entry, u32 index,
		 struct packet *packet, u32 reply, u32 v6, u32 opened)
{
	const be32 *src = packet->src, *dst = packet->dst;
	const be32 *new_src = CHOOSE(reply, &entry->vip[0], &entry->source[0]);
	const be32 *new_dst = CHOOSE(reply, &entry->client[0], &entry->backend[0]);
	/* The other direction's, swapped. */
	be32 opposite = *CHOOSE(reply, &entry->ports, &entry->reply_ports);
	be32 ports = opposite >> 16 | opposite << 16;
	u64 now = ktime_get_coarse_ns();
	struct bpf_fib_lookup route = {};
	const be32 *route_src;
	u32 addresses;
	int why;

	if (!may_carry(now))
		return lift(NO_BEAT);
	if (packet->ttl <= 1)
		return lift(LAST_HOP);
	/* As for the packets that come through the queue: the source of a reply to a client whose
	 * address the backend sees is translated after the routing decision. */
	if (reply && are_equal(entry->client, entry->source)) {
		route_src = src;
		route.sport = packet->ports & 0xFFFF;
	} else {
		route_src = new_src;
		route.sport = ports & 0xFFFF;
	}
	route.dport = ports >> 16;
	if (v6) {
		route.family = AF_INET6;
		route.flowinfo = BE32((u32)packet->traffic_class << 20);
		copy_address(route.ipv6_src, route_src);
		copy_address(route.ipv6_dst, new_dst);
	} else {
		route.family = AF_INET;
		route.tos = packet->traffic_class;
		route.ipv4_src = route_src[3];
		route.ipv4_dst = new_dst[3];
	}
	why = find_route(skb, packet, &route);
	if (why >= 0)
		return lift(why);
	if (packet->flags & TCP_RST) {
		u32 length = packet->length - (packet->transport - packet->network);

		/* Of IPv4, the sum of the mapped form; its prefixes cancel out. */
		packet->pseudo_sum = fold32((u64)src[0] + src[1] + src[2] + src[3] + dst[0] +
					    dst[1] + dst[2] + dst[3] + BE32(length) +
					    BE32(PROTO_TCP));
	}
	why = opened ? CARRIED : follow(skb, entry, index, packet, reply);
	if (why >= 0)
		return lift(why);
	count(entry, packet, now, reply);
	addresses = fold32(difference(src, new_src) + difference(dst, new_dst));
	if (!update_check(skb, packet, addresses,
			  packet->ports == ports ? 0 : fold32((u64)(u32)~packet->ports + ports)))
		return TC_ACT_SHOT;
	if (v6) {
		/* If a device has summed the whole packet, its sum goes with the packet. In IPv4 all
		 * changes but the one that `update_check` takes into account cancel out. In IPv6
		 * that one cancels out as well, and the hop limit, the lower half of its word,
		 * doesn't. */
		csum_update(skb, fold32((u64)addresses + (u16)~BE16(0x0001)));
		if (!rewrite6(skb, link_header, new_src, new_dst, ports))
			return TC_ACT_SHOT;
	} else if (!rewrite4(skb, link_header, new_src, new_dst, ports, addresses)) {
		return TC_ACT_SHOT;
	}
	return send(&route);
}

/* Whether the entry is that of the packet's flow: so nothing depends on the order in which keys and
 * entries change. */
INLINE int is_of(const struct entry *entry, const struct packet *packet, u32 reply)
{
	const be32 *source = CHOOSE(reply, &entry->backend[0], &entry->client[0]);
	const be32 *destination = CHOOSE(reply, &entry->source[0], &entry->vip[0]);
	be32 ports = *CHOOSE(reply, &entry->reply_ports, &entry->ports);

	return are_equal(packet->src, source) && are_equal(packet->dst, destination) &&
	       packet->ports == ports && packet->protocol == entry->protocol;
}

/* Read an IPv4 packet's headers and find its flow. Its length is 0 if it can't be carried. */
INLINE const u32 *find4(struct __sk_buff *skb, const u32 link_header, struct packet *packet)
{
	be32 *src = packet->src, *dst = packet->dst;
	struct tuple4 tuple = {};
	struct iphdr *ip;
	void *end;
	u32 room;

	if (!reach(skb, link_header + 28))
		return 0;
	ip = (void *)(long)skb->data + link_header;
	end = (void *)(long)skb->data_end;
	if ((void *)(ip + 1) > end)
		return 0;
	/* No options, no fragments. */
	if (ip->version_ihl != 0x45 || ip->frag_off & BE16(0x3FFF))
		return 0;
	if (ip->protocol == PROTO_TCP) {
		if (!reach(skb, link_header + 40))
			return 0;
		ip = (void *)(long)skb->data + link_header;
		end = (void *)(long)skb->data_end;
		if ((void *)(ip + 1) > end)
			return 0;
	} else if (ip->protocol != PROTO_UDP) {
		return 0;
	}
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->traffic_class = ip->tos;
	packet->gso_size = skb->gso_size;
	room = skb->len - link_header;
	packet->length = packet->gso_size ? room : BE16(ip->tot_len);
	if (packet->length > room || packet->length < 28) {
		packet->length = 0;
		return 0;
	}
	packet->network = link_header;
	packet->transport = link_header + sizeof(*ip);
	src[2] = dst[2] = MAPPED;
	src[3] = ip->saddr;
	dst[3] = ip->daddr;
	if (!read_transport(packet, ip + 1, end)) {
		packet->length = 0;
		return 0;
	}
	tuple.src = src[3];
	tuple.dst = dst[3];
	tuple.ports = packet->ports;
	tuple.protocol = packet->protocol;
	return map_lookup_elem(&flows4, &tuple);
}

INLINE const u32 *find6(struct __sk_buff *skb, const u32 link_header, struct packet *packet)
{
	be32 *src = packet->src, *dst = packet->dst;
	struct tuple6 tuple = {};
	struct ipv6hdr *ip;
	void *end;
	u32 room;

	if (!reach(skb, link_header + 48))
		return 0;
	ip = (void *)(long)skb->data + link_header;
	end = (void *)(long)skb->data_end;
	if ((void *)(ip + 1) > end)
		return 0;
	if (*(u8 *)ip >> 4 != 6)
		return 0;
	/* No extension headers. */
	if (ip->nexthdr == PROTO_TCP) {
		if (!reach(skb, link_header + 60))
			return 0;
		ip = (void *)(long)skb->data + link_header;
		end = (void *)(long)skb->data_end;
		if ((void *)(ip + 1) > end)
			return 0;
	} else if (ip->nexthdr != PROTO_UDP) {
		return 0;
	}
	packet->protocol = ip->nexthdr;
	packet->ttl = ip->hop_limit;
	packet->traffic_class = BE32(ip->version_class_label) >> 20;
	packet->gso_size = skb->gso_size;
	room = skb->len - link_header;
	packet->length = packet->gso_size ? room : BE16(ip->payload_len) + sizeof(*ip);
	if (packet->length > room || packet->length < 48) {
		packet->length = 0;
		return 0;
	}
	packet->network = link_header;
	packet->transport = link_header + sizeof(*ip);
	copy_address(src, ip->saddr);
	copy_address(dst, ip->daddr);
	if (!read_transport(packet, ip + 1, end)) {
		packet->length = 0;
		return 0;
	}
	copy_address(tuple.src, src);
	copy_address(tuple.dst, dst);
	tuple.ports = packet->ports;
	tuple.protocol = packet->protocol;
	return map_lookup_elem(&flows6, &tuple);
}

/* Whether the source can't be on a wire (`Packet.is_martian` in featherlb/net/packet.py). */
INLINE int is_martian(const struct packet *packet, u32 v6)
{
	u32 highest = packet->src[0], lowest = packet->src[3], first;

	asm volatile("" : "+r"(highest), "+r"(lowest));
	if (are_equal(packet->src, packet->dst))
		return 1;
	first = (v6 ? highest : lowest) & 0xFF;
	if (!v6)
		return !first || first == 127 || first >= 224;
	if (first == 0xFF)
		return 1;
	/* Unspecified, loopback, mapped and the like. */
	return !(highest | packet->src[1]) && (!packet->src[2] || packet->src[2] == MAPPED);
}

#define ROTATED(x, n) ((x) << (n) | (x) >> (32 - (n)))

/* The worker whose shard has a client's flows: HMARK's hash (net/netfilter/xt_HMARK.c). */
NOINLINE u32 worker_of(const struct packet *packet, u32 v6)
{
	u32 key = 0, a, b, c, port = BE32(packet->ports) >> 16, address;
	struct control *state = map_lookup_elem(&control, &key);

	if (!state || state->workers <= 1)
		return 0;
	if (v6) {
		be32 folded = 0;

#define FOLD(i)                                                                                    \
	folded ^= packet->src[i] & (masked ? state->mask6[i] : ~0u);
		u32 masked = state->mask6[0];

		FOLD(0) FOLD(1) FOLD(2) FOLD(3)
		if (masked)
			port = 0;
		address = BE32(folded);
	} else {
		be32 mask = state->mask4;

		address = BE32(packet->src[3] & (mask ? mask : ~0u));
		if (mask)
			port = 0;
	}
	a = state->start;
	b = a + address;
	c = a + (port << 16);
	c = (c ^ b) - ROTATED(b, 14);
	a = (a ^ c) - ROTATED(c, 11);
	b = (b ^ a) - ROTATED(a, 25);
	c = (c ^ b) - ROTATED(b, 16);
	a = (a ^ c) - ROTATED(c, 4);
	b = (b ^ a) - ROTATED(a, 14);
	c = (c ^ b) - ROTATED(b, 24);
	return (u64)c * state->workers >> 32;
}

/* The number of the member in a slot of a table, plus 1; 0 if there is none. */
INLINE u32 member_at(u32 worker, u64 table, u32 slot)
{
	u32 key = worker * ROWS + (table >> 32) + slot / SLOTS_OF_ROW;
	u64 *row = map_lookup_elem(&rows, &key);

	return row ? ONCE(*row) >> SHIFT_OF(slot) & 0xFFFF : 0;
}

INLINE u32 less_loaded(u32 first_member, u32 one, u32 other)
{
	u32 first = first_member + one - 1, second = first_member + other - 1;
	struct member *member = map_lookup_elem(&members, &first);
	u64 active, weight;

	if (!member)
		return 0;
	active = member->active;
	weight = member->weight;
	member = map_lookup_elem(&members, &second);
	if (!member)
		return 0;
	return member->active * weight < active * member->weight ? other : one;
}

#define MIX(a, b, c, d, x, y)                                                                      \
	a += b + (x);                                                                              \
	d = ROTATED(d ^ a, 16);                                                                    \
	c += d;                                                                                    \
	b = ROTATED(b ^ c, 20);                                                                    \
	a += b + (y);                                                                              \
	d = ROTATED(d ^ a, 24);                                                                    \
	c += d;                                                                                    \
	b = ROTATED(b ^ c, 25);

/* A round of BLAKE2s, with the words of the message in the order of its row of sigma. */
#define ROUND(m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15)                \
	MIX(v[0], v[4], v[8], v[12], m[m0], m[m1])                                                 \
	MIX(v[1], v[5], v[9], v[13], m[m2], m[m3])                                                 \
	MIX(v[2], v[6], v[10], v[14], m[m4], m[m5])                                                \
	MIX(v[3], v[7], v[11], v[15], m[m6], m[m7])                                                \
	MIX(v[0], v[5], v[10], v[15], m[m8], m[m9])                                                \
	MIX(v[1], v[6], v[11], v[12], m[m10], m[m11])                                              \
	MIX(v[2], v[7], v[8], v[13], m[m12], m[m13])                                               \
	MIX(v[3], v[4], v[9], v[14], m[m14], m[m15])

/* The keyed hash of `length` bytes, 64 at most (RFC 7693; `KeyedHash` in
 * featherlb/core/pools/schedulers/hashing.py): the first 8 bytes, big-endian. */
INLINE u64 hashed(const u32 *state, const u32 *m, u32 length)
{
	u32 v[16] = {
		state[0],
		state[1],
		state[2],
		state[3],
		state[4],
		state[5],
		state[6],
		state[7],
		0x6A09E667,
		0xBB67AE85,
		0x3C6EF372,
		0xA54FF53A,
		0x510E527F ^ (64 + length),
		0x9B05688C,
		~0x1F83D9ABu,
		0x5BE0CD19,
	};

	ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
	ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)
	ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)
	ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)
	ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)
	ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)
	ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)
	ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)
	ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)
	return (u64)SWAPPED(state[0] ^ v[0] ^ v[8]) << 32 | SWAPPED(state[1] ^ v[1] ^ v[9]);
}

/* The hash of the client's address or of the whole tuple, if this service's flows are placed by it. */
NOINLINE u64 hash_of(const struct packet *packet, u32 number, u32 v6)
{
	struct service *service = map_lookup_elem(&services, &number);
	u32 message[16] = {}, length, how;

	if (!service)
		return 0;
	how = ONCE(service->how);
	if (how < BY_CLIENT)
		return 0;
	if (!v6) {
		message[0] = LE32(packet->src[3]);
		length = 4;
		if (how == BY_TUPLE) {
			message[1] = LE32(packet->dst[3]);
			message[2] = LE32(packet->ports);
			message[3] = packet->protocol;
			length = 13;
		}
	} else {
		message[0] = LE32(packet->src[0]);
		message[1] = LE32(packet->src[1]);
		message[2] = LE32(packet->src[2]);
		message[3] = LE32(packet->src[3]);
		length = 16;
		if (how == BY_TUPLE) {
			message[4] = LE32(packet->dst[0]);
			message[5] = LE32(packet->dst[1]);
			message[6] = LE32(packet->dst[2]);
			message[7] = LE32(packet->dst[3]);
			message[8] = LE32(packet->ports);
			message[9] = packet->protocol;
			length = 37;
		}
	}
	return hashed(service->hash, message, length);
}

/* The next number of a sequence that looks random: the worker knows it, too
 * (featherlb/core/pools/turn.py). */
INLINE u32 scrambled(u32 number)
{
	number ^= number >> 16;
	number *= 0x7FEB352D;
	number ^= number >> 15;
	number *= 0x846CA68B;
	return number ^ number >> 16;
}

/* The number of the member for a new flow with this hash, among those of its worker, plus 1; 0 if the
 * worker is to choose. */
INLINE u32 choose(u32 number, u32 worker, u64 hash)
{
	struct service *service = map_lookup_elem(&services, &number);
	u32 how, size, one, other, count;
	u64 table;

	if (!service)
		return 0;
	how = ONCE(service->how);
	table = ONCE(service->table);
	size = table;
	if (how == BY_WORKER || !size || size > ROWS * SLOTS_OF_ROW)
		return 0;
	if (how == IN_TURN)
		return member_at(worker, table, __sync_fetch_and_add(&service->cursor, 1) % size);
	if (how >= BY_CLIENT)
		return member_at(worker, table, hash % size);
	if (how == AT_RANDOM) {
		count = __sync_fetch_and_add(&service->cursor, 1) + service->hash[0];
		return member_at(worker, table, scrambled(count) % size);
	}
	count = __sync_fetch_and_add(&service->cursor, 2) + service->hash[0];
	one = member_at(worker, table, scrambled(count) % size);
	other = member_at(worker, table, scrambled(count + 1) % size);
	return one && other ? less_loaded(worker * MEMBERS, one, other) : 0;
}

/* The number of an unused entry of a worker, 0 if there is none. */
NOINLINE u32 take_spare(u32 worker)
{
	struct queue *ends = map_lookup_elem(&queue, &worker);
	u32 tail, slot;
	u64 *spared;

	if (!ends)
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < ATTEMPTS; i++) {
		u32 index;

		tail = ONCE(ends->tail);
		if (tail == ONCE(ends->head))
			return 0;
		slot = worker * SPARE + tail % SPARE;
		spared = map_lookup_elem(&spare, &slot);
		if (!spared)
			return 0;
		index = ONCE(*spared);
		if (__sync_val_compare_and_swap(&ends->tail, tail, tail + 1) == tail)
			return index;
	}
	return 0;
}

/* The tuple of a backend's replies, as the map `direct` has it: of IPv4 in the mapped form. */
INLINE void reply_tuple(struct tuple6 *tuple, const be32 *backend, const be32 *client,
			be32 reply_ports, u8 protocol)
{
	copy_address(tuple->src, backend);
	copy_address(tuple->dst, client);
	tuple->ports = reply_ports;
	tuple->protocol = protocol;
}

/* Note that a client talks to a backend itself, with this host as its router: what the backend
 * answers must not be taken for the replies of a flow. */
NOINLINE void note_direct(const struct packet *packet)
{
	struct tuple6 tuple = {};
	u64 now = ktime_get_coarse_ns();

	reply_tuple(&tuple, packet->dst, packet->src, packet->ports >> 16 | packet->ports << 16,
		    packet->protocol);
	map_update_elem(&direct, &tuple, &now, 0);
}

/* Whether the client has lately talked to the backend itself from this port. */
NOINLINE int is_direct(const struct entry *entry)
{
	struct tuple6 tuple = {};

	reply_tuple(&tuple, entry->backend, entry->source, entry->reply_ports, entry->protocol);
	return !!map_lookup_elem(&direct, &tuple);
}

/* Insert the keys of an entry, unless one of them is there. */
NOINLINE int insert(const struct entry *entry, u32 index, u32 v6)
{
	u32 reference = index << 1, reply = index << 1 | 1;

	/* The reply first: it may be in use, by a connection to another VIP. */
	if (v6) {
		struct tuple6 there = { .ports = entry->ports, .protocol = entry->protocol };
		struct tuple6 back = { .ports = entry->reply_ports, .protocol = entry->protocol };

		copy_address(there.src, entry->client);
		copy_address(there.dst, entry->vip);
		copy_address(back.src, entry->backend);
		copy_address(back.dst, entry->source);
		if (map_update_elem(&flows6, &back, &reply, NOEXIST))
			return 0;
		if (!map_update_elem(&flows6, &there, &reference, NOEXIST))
			return 1;
		map_delete_elem(&flows6, &back);
	} else {
		struct tuple4 there = { .ports = entry->ports, .protocol = entry->protocol };
		struct tuple4 back = { .ports = entry->reply_ports, .protocol = entry->protocol };

		there.src = entry->client[3];
		there.dst = entry->vip[3];
		back.src = entry->backend[3];
		back.dst = entry->source[3];
		if (map_update_elem(&flows4, &back, &reply, NOEXIST))
			return 0;
		if (!map_update_elem(&flows4, &there, &reference, NOEXIST))
			return 1;
		map_delete_elem(&flows4, &back);
	}
	return 0;
}

NOINLINE void fill(struct __sk_buff *skb, struct entry *entry, const struct packet *packet,
		   const struct member *member, u32 v6)
{

	copy_address(entry->client, packet->src);
	copy_address(entry->vip, packet->dst);
	copy_address(entry->backend, member->address);
	copy_address(entry->source, packet->src);
	entry->ports = packet->ports;
	entry->reply_ports = member->port | (packet->ports & 0xFFFF) << 16;
	entry->quiet = 0;
	entry->options = v6 ? IPV6 : 0;
	entry->expected[0] = 0;
	entry->ends[1] = 0;
	entry->packets[0] = entry->packets[1] = 0;
	entry->bytes[0] = entry->bytes[1] = 0;
	entry->protocol = packet->protocol;
	if (packet->protocol == PROTO_TCP) {
		int scale = window_scale(skb, packet->transport + 20, packet->header - 20);

		/* As `windows.begin`: until the backend answers, 1 says that the client scales. */
		entry->scales = scale >= 0 ? scale << 4 | 1 : 0;
		entry->expected[1] = entry->ends[0] = packet->sequence + 1;
		entry->state = SYN_SENT;
	} else {
		entry->scales = 0;
		entry->expected[1] = entry->ends[0] = 0;
		entry->state = UDP_ONE_WAY;
	}
}

INLINE int may_open(const struct packet *packet)
{
	return packet->protocol == PROTO_UDP || packet->flags == TCP_SYN;
}

/* Whether the IPv4 header's sum is wrong: the kernel would have dropped the packet. */
NOINLINE int is_damaged(struct __sk_buff *skb, const struct packet *packet)
{
	be32 header[5] = {};

	if (skb_load_bytes(skb, packet->network, header, sizeof(header)))
		return 1;
	return fold16((u32)csum_diff(0, 0, header, sizeof(header), 0)) != 0xFFFF;
}

INLINE u32 *look_up_place(const be32 *address, be16 port, u8 protocol, u32 worker)
{
	struct place place = { .port = port, .protocol = protocol, .worker = worker };

	copy_address(place.address, address);
	return map_lookup_elem(&places, &place);
}

/* Whether an address is this host's, or there is no way back to it. */
NOINLINE int is_unreachable(struct __sk_buff *skb, const struct packet *packet, u32 worker, u32 v6)
{
	struct bpf_fib_lookup route = {};

	if (look_up_place(packet->src, 0, 0, worker))
		return 1;
	if (v6) {
		route.family = AF_INET6;
		copy_address(route.ipv6_src, packet->dst);
		copy_address(route.ipv6_dst, packet->src);
	} else {
		route.family = AF_INET;
		route.ipv4_src = packet->dst[3];
		route.ipv4_dst = packet->src[3];
	}
	return find_route(skb, packet, &route) == NO_ROUTE;
}

/* The number of the service for which a flow may be opened here, 0 if there is none. */
NOINLINE u32 find_service(struct __sk_buff *skb, const struct packet *packet, u32 worker, u32 v6)
{
	u32 length = packet->transport - packet->network + packet->header;
	u32 *number = look_up_place(packet->dst, packet->ports >> 16, packet->protocol, worker);

	if (!number)
		return 0;
	if (!*number) {
		note_direct(packet);
		return 0;
	}
	if (!may_open(packet))
		return 0;
	if (packet->protocol == PROTO_TCP && packet->length != length)
		return 0;
	if (!v6 && is_damaged(skb, packet))
		return 0;
	if (packet->ttl <= 1 || is_martian(packet, v6) || is_unreachable(skb, packet, worker, v6))
		return 0;
	return *number;
}

/* Whether the worker will hear of a flow: else it couldn't end it. A sixteenth of the ring is for
 * those that other CPUs are opening now, and for changes of state. */
NOINLINE int may_announce(u32 worker)
{
	void *ring = map_lookup_elem(&events, &worker);
	u64 size;

	if (!ring)
		return 0;
	size = ringbuf_query(ring, RB_RING_SIZE);
	return ringbuf_query(ring, RB_AVAIL_DATA) <= size - size / 16;
}

/* Tell the worker of an entry with which a flow was opened; or, with the state 0, was not. */
NOINLINE void announce(struct __sk_buff *skb, const struct packet *packet, struct entry *entry,
		       u32 index)
{
	u32 length = packet->transport - packet->network + packet->header;
	u32 worker = entry->worker, state = entry->live ? entry->state & STATE : 0;
	struct opening *opening;
	void *ring = map_lookup_elem(&events, &worker);

	if (!ring)
		return;
	opening = ringbuf_reserve(ring, sizeof(*opening), 0);
	if (!opening)
		return;
	opening->event.index = index;
	opening->event.before = 0;
	opening->event.after = state;
	opening->event.zero = length;
	opening->event.time = ktime_get_ns();
	if (length && length <= sizeof(opening->headers))
		skb_load_bytes(skb, packet->network, opening->headers, length);
	ringbuf_submit(opening, RB_NO_WAKEUP);
}

/* Open a flow of this service for a packet. The number of its entry, 0 if the worker is to open it. */
NOINLINE u32 open(struct __sk_buff *skb, const struct packet *packet, u32 number, u64 hash, u32 v6)
{
	u32 worker = number / SERVICES, index;
	struct member *member;
	struct entry *entry;

	number = choose(number, worker, hash);
	if (!number)
		return 0;
	number += worker * MEMBERS - 1;
	member = map_lookup_elem(&members, &number);
	if (!member || !ONCE(member->usable) || !may_announce(worker))
		return 0;
	index = take_spare(worker);
	entry = map_lookup_elem(&entries, &index);
	if (!index || !entry)
		return 0;
	entry->worker = worker;
	entry->member = number - worker * MEMBERS;
	fill(skb, entry, packet, member, v6);
	entry->live = 1;
	if (is_direct(entry) || !insert(entry, index, v6)) {
		entry->live = 0;
		announce(skb, packet, entry, index);
		return 0;
	}
	announce(skb, packet, entry, index);
	__sync_fetch_and_add(&member->active, 1);
	return index;
}

INLINE int enter(struct __sk_buff *skb, const u32 link_header)
{
	struct packet packet = {};
	const u32 *reference;
	struct entry *entry;
	u32 index, v6, service, reply = 0, opened = 0;

	/* What a tagged packet belongs to is the business of the VLAN's device; what is to another
	 * machine, of a bridge. */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return TC_ACT_UNSPEC;
	v6 = skb->protocol == BE16(ETH_P_IPV6);
	if (skb->protocol == BE16(ETH_P_IP))
		reference = find4(skb, link_header, &packet);
	else if (v6)
		reference = find6(skb, link_header, &packet);
	else
		return TC_ACT_UNSPEC;
	if (reference) {
		index = *reference >> 1;
		reply = *reference & 1;
	} else {
		if (!packet.length || !may_carry(ktime_get_coarse_ns()))
			return TC_ACT_UNSPEC;
		service = find_service(skb, &packet, worker_of(&packet, v6), v6);
		if (!service)
			return TC_ACT_UNSPEC;
		index = open(skb, &packet, service, hash_of(&packet, service, v6), v6);
		if (!index)
			return TC_ACT_UNSPEC;
		opened = 1;
	}
	entry = map_lookup_elem(&entries, &index);
	if (!entry || !entry->live || !is_of(entry, &packet, reply))
		return lift(TAKEN);
	return carry(skb, link_header, entry, index, &packet, reply, v6, opened);
}

/* At links whose packets have an Ethernet header. */
SEC("tc/ingress")
int ingress(struct __sk_buff *skb)
{
	return enter(skb, ETH_HLEN);
}

/* At links whose packets have no header (tun, WireGuard, PPP). */
SEC("tc/ingress_bare")
int ingress_bare(struct __sk_buff *skb)
{
	return enter(skb, 0);
}
