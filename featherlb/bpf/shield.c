/* Answers SYNs with cookies where they enter a link, as core/path/cookies.py does in a worker: the
 * same answer, so that a worker takes the ACK that brings the cookie back.
 *
 * It is attached while a service is under a flood, and sees all packets of the link meanwhile: the
 * first comparisons let those go that are no SYN. A SYN that it doesn't understand (IP options,
 * extension headers, a VLAN tag, no link to send the answer back by) goes on to the worker. Nothing is
 * allocated: the frame becomes its answer, and leaves by the link on which it came.
 */

#include "kernel.h"

/* Who is answered, by the longest match: address (IPv4 in IPv6's mapped form) and port. The value is
 * the MSS to offer, and 16 bits higher the window scale, NOT_SCALED for none. */
struct vip {
	u32 prefix;	/* in bits */
	be32 address[4];
	be16 port;
};

enum {
	VIP_SIZE = 22,	/* without what aligns the next one */
	VIP_BITS = 8 * (VIP_SIZE - 4),
};

/* The secret of the cookies, as the two words of a SipHash key. */
struct key {
	u64 words[2];
};

struct ethhdr {
	u8 dest[6];
	u8 source[6];
	be16 protocol;
};
SIZE_CHECK(struct ethhdr, ETH_HLEN);

struct tcp_answer {
	struct tcphdr header;
	be32 options[3];
};

/* Frames, in a place where their words are aligned. */
struct frame4 {
	u16 unused;
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcp_answer tcp;
};

struct frame6 {
	u16 unused;
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	struct tcp_answer tcp;
};

enum {
	TCP4 = ETH_HLEN + sizeof(struct iphdr),
	TCP6 = ETH_HLEN + sizeof(struct ipv6hdr),
	LEAST4 = TCP4 + sizeof(struct tcphdr),
	LEAST6 = TCP6 + sizeof(struct tcphdr),
};

/* Where a CPU works on a frame. Without CAP_PERFMON the verifier takes neither variable offsets on
 * the stack nor numbers where a pointer was, so pointers are few, and live to the end. */
struct room {
	union {
		struct frame4 in4;
		struct frame6 in6;
	};
	union {
		struct frame4 out4;
		struct frame6 out6;
	};
	struct vip vip;
	u8 options[64];
};

MAP(vips) = { MAP_LPM_TRIE, VIP_SIZE, sizeof(u32), 65536, NO_PREALLOC };
MAP(keys) = { MAP_ARRAY, sizeof(u32), sizeof(struct key), 1, 0 };
MAP(answered) = { MAP_PERCPU_ARRAY, sizeof(u32), sizeof(u64), 1, 0 };
MAP(rooms) = { MAP_PERCPU_ARRAY, sizeof(u32), sizeof(struct room), 1, 0 };

char _license[] SEC("license") = "GPL";

enum {
	SLOT_SECONDS = 64,	/* SLOT of cookies.py */
	NOT_SCALED = 15,
	LARGEST_SCALE = 14,	/* RFC 7323 section 2.3 */
	TTL = 64,
	DONT_FRAGMENT = 0x4000,
	MAX_OPTIONS = 12,	/* that a SYN may have, padding counted: what comes after is ignored */
};

enum {
	OPTION_END = 0,
	OPTION_PADDING = 1,
	OPTION_MSS = 2,
	OPTION_SCALE = 3,
	OPTION_SACK_PERMITTED = 4,
};

/* What the SYN's options say. */
struct offer {
	u32 size;	/* the MSS in bytes, 0 without one */
	u32 scale;	/* NOT_SCALED without one */
	u32 sack;	/* 1 if it is permitted */
};

/* SipHash-2-4 of 64-bit words, as net/siphash.py. */
struct sip {
	u64 v0, v1, v2, v3;
};

#define ROTATED(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))

INLINE void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v1 = ROTATED(s->v1, 13) ^ s->v0;
	s->v0 = ROTATED(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ROTATED(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = ROTATED(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = ROTATED(s->v1, 17) ^ s->v2;
	s->v2 = ROTATED(s->v2, 32);
}

INLINE void sip_add(struct sip *s, u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	sip_round(s);
	s->v0 ^= word;
}

INLINE u64 sip_end(struct sip *s, u32 words)
{
	sip_add(s, (u64)(8 * words) << 56);
	s->v2 ^= 0xFF;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

INLINE void sip_begin(struct sip *s, const struct key *key)
{
	u64 low = key->words[0], high = key->words[1];

	s->v0 = low ^ 0x736F6D6570736575ULL;
	s->v1 = high ^ 0x646F72616E646F6DULL;
	s->v2 = low ^ 0x6C7967656E657261ULL;
	s->v3 = high ^ 0x7465646279746573ULL;
}

/* The cookie for a hash, as `cookie_of` of cookies.py. */
INLINE u32 cookie_of(u64 code, u32 data)
{
	u32 seal = (u32)(code >> 40) + ((u32)(code >> 8 & 0xFFFFFF) | 1) * data;

	return seal << 8 | (((u32)code ^ data) & 0xFF);
}

INLINE u32 folded(u64 sum)
{
	sum = (sum & 0xFFFFFFFF) + (sum >> 32);
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (u32)((sum & 0xFFFF) + (sum >> 16));
}

/* Comparisons of numbers below 2^31 without a branch, 1 or 0: the verifier follows both ways of each
 * branch, which in the loop below would be millions. */
INLINE u32 is_less(u32 a, u32 b)
{
	u32 difference = a - b;

	asm volatile("" : "+r"(difference));	/* or the compiler makes it a branch again */
	return difference >> 31;
}

INLINE u32 is_equal(u32 a, u32 b)
{
	return is_less(a ^ b, 1);
}

/* The number of the largest of SEGMENT_SIZES that isn't above the client's. */
INLINE u32 size_number(u32 size)
{
	return 7 - is_less(size, 1220) - is_less(size, 1300) - is_less(size, 1400) -
	       is_less(size, 1440) - is_less(size, 1460) - is_less(size, 4312) - is_less(size, 8960);
}

/* `now` where `condition` is 1, `before` where it is 0. */
INLINE u32 chosen(u32 condition, u32 now, u32 before)
{
	u32 mask = -condition;

	asm volatile("" : "+r"(mask));
	return before ^ ((before ^ now) & mask);
}

/* The first option of each kind, if it has the right length; what stands behind a malformed one is
 * ignored. `options` has 64 bytes. `at` is 0, which the verifier must not know: without CAP_PERFMON
 * it takes no instruction that adds numbers of one range at one time and of another at another. */
INLINE void read_options(const u8 *options, u32 length, u32 at, struct offer *offer)
{
	u32 active = 1, first_size = 1, first_scale = 1, first_sack = 1, i;

#pragma clang loop unroll(disable)
	for (i = 0; i < MAX_OPTIONS; i++) {
		u32 kind = options[at & 63], size = options[(at + 1) & 63];
		u32 value = options[(at + 2) & 63], next = options[(at + 3) & 63];
		u32 padding = is_equal(kind, OPTION_PADDING), here;

		size = chosen(padding, 1, size);
		active &= is_less(OPTION_END, kind) & is_less(1 - padding, size) &
			  is_less(at, length) & is_less(at + size, length + 1);
		here = active & first_size & is_equal(kind, OPTION_MSS);
		first_size ^= here;
		offer->size = chosen(here & is_equal(size, 4), value << 8 | next, offer->size);
		here = active & first_scale & is_equal(kind, OPTION_SCALE);
		first_scale ^= here;
		value = chosen(is_less(LARGEST_SCALE, value), LARGEST_SCALE, value);
		offer->scale = chosen(here & is_equal(size, 3), value, offer->scale);
		here = active & first_sack & is_equal(kind, OPTION_SACK_PERMITTED);
		first_sack ^= here;
		offer->sack |= here & is_equal(size, 2);
		at += size & -active;
	}
}

/* What the SYN offers whose options of this `length` stand at an offset; 0 if it can't be read. */
INLINE int read_offer(struct __sk_buff *skb, struct room *room, u32 offset, u32 length, u32 least,
		      struct offer *offer)
{
	offer->size = 0;
	offer->scale = NOT_SCALED;
	offer->sack = 0;
	if (length) {
		if (length > 40 || skb_load_bytes(skb, offset, room->options, length))
			return 0;
		read_options(room->options, length, skb->len >> 26, offer);
	}
	offer->size = chosen(is_less(offer->size, 1), least, offer->size);
	return 1;
}

INLINE u32 data_of(const struct offer *offer)
{
	return size_number(offer->size) << 5 | offer->scale << 1 | offer->sack;
}

INLINE u64 now_slot(void)
{
	return ktime_get_ns() / (1000000000ULL * SLOT_SECONDS);
}

/* What to offer in answers from the room's `vip`; 0 if it isn't answered. */
INLINE u32 offered(struct room *room)
{
	u32 *value;

	room->vip.prefix = VIP_BITS;
	value = map_lookup_elem(&vips, &room->vip);
	return value ? *value : 0;
}

INLINE u32 scale_of(u32 offered)
{
	return offered >> 16 & 15;
}

INLINE void turn_round(struct ethhdr *out, const struct ethhdr *in)
{
	__builtin_memcpy(out->dest, in->source, 6);
	__builtin_memcpy(out->source, in->dest, 6);
	out->protocol = in->protocol;
}

/* Fills in the answer to a SYN and returns its length. `check` is the sum over the pseudo-header, as
 * in a segment whose checksum the sender leaves to the hardware; `pseudo` is without the length. */
INLINE u32 write_answer(struct tcp_answer *out, const struct tcphdr *syn, const struct offer *offer,
			u32 cookie, u32 offered, u64 pseudo)
{
	u32 scaled = 1 - (is_equal(offer->scale, NOT_SCALED) | is_equal(scale_of(offered), NOT_SCALED));
	be32 scale = BE32(0x01030300 | scale_of(offered)) & -scaled;
	u32 length = sizeof(struct tcphdr) + 4 + 4 * scaled + 4 * offer->sack;

	out->header.source = syn->dest;
	out->header.dest = syn->source;
	out->header.seq = BE32(cookie);
	out->header.ack_seq = BE32(BE32(syn->seq) + 1);
	out->header.doff = length << 2;
	out->header.flags = TCP_SYN | TCP_ACK;
	out->header.window = 0;
	out->header.check = 0;
	out->header.urg_ptr = 0;
	out->options[0] = BE32(0x02040000 | (offered & 0xFFFF));
	out->options[1] = chosen(offer->sack, BE32(0x01010402), scale);
	out->options[2] = scale & -offer->sack;
	out->header.check = folded(pseudo + BE16(length));
	return length;
}

/* Sends the answer back by the link on which the SYN came. `length` bytes of the frame follow the
 * offset `tcp`. */
INLINE int send_back(struct __sk_buff *skb, const struct ethhdr *frame, struct tcp_answer *answer, u32 tcp,
		     u32 length)
{
	u32 zero = 0;
	u64 pseudo = answer->header.check, *count, sum;

	sum = (u32)csum_diff(0, 0, (be32 *)answer, sizeof(*answer), 0);
	length = ((length - 1) & 31) + 1;	/* 24, 28 or 32, which the verifier shall see */
	if (skb_change_tail(skb, tcp + length, 0))
		return TC_ACT_UNSPEC;
	if (skb_store_bytes(skb, 0, frame, tcp + length, 0))
		return TC_ACT_SHOT;
	/* The kernel leaves the field as it is if the checksum is to be completed on the way out. If not,
	 * it takes the first number out of the checksum and the second one in: there is the pseudo-header's
	 * sum, not inverted, and there shall be that of everything. `sum` has the pseudo-header's. */
	l4_csum_replace(skb, tcp + __builtin_offsetof(struct tcphdr, check), 0, folded(sum + pseudo), 0);
	count = map_lookup_elem(&answered, &zero);
	if (count)
		(*count)++;
	return redirect(skb->ifindex, 0);
}

INLINE int answer4(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct room *room;
	struct offer offer;
	struct key *key;
	struct sip s;
	u32 source, destination, length, header, zero = 0, value;
	u64 sum;

	if ((void *)(tcp + 1) > end || ip->version_ihl != 0x45 || ip->protocol != PROTO_TCP ||
	    ip->frag_off & BE16(0x3FFF) ||
	    (tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
		return TC_ACT_UNSPEC;
	room = map_lookup_elem(&rooms, &zero);
	if (!room || skb_load_bytes(skb, 0, &room->in4.ethernet, LEAST4))
		return TC_ACT_UNSPEC;
	room->vip.address[0] = 0;
	room->vip.address[1] = 0;
	room->vip.address[2] = BE32(0xFFFF);
	room->vip.address[3] = room->in4.ip.daddr;
	room->vip.port = room->in4.tcp.header.dest;
	value = offered(room);
	if (!value)
		return TC_ACT_UNSPEC;
	source = BE32(room->in4.ip.saddr);
	destination = BE32(room->in4.ip.daddr);
	header = (room->in4.tcp.header.doff >> 4) * 4;
	/* The worker knows which sources are martians. */
	if (source >> 24 == 0 || source >> 24 == 127 || source >> 28 >= 14 || source == destination ||
	    header < sizeof(struct tcphdr) || BE16(room->in4.ip.tot_len) < sizeof(struct iphdr) + header)
		return TC_ACT_UNSPEC;
	if (folded((u32)csum_diff(0, 0, (be32 *)&room->in4.ip, sizeof(struct iphdr), 0)) != 0xFFFF)
		return TC_ACT_UNSPEC;
	if (!read_offer(skb, room, LEAST4, (header - sizeof(struct tcphdr)) & 63, 536, &offer))
		return TC_ACT_UNSPEC;

	key = map_lookup_elem(&keys, &zero);
	if (!key)
		return TC_ACT_UNSPEC;
	sip_begin(&s, key);
	sip_add(&s, (u64)source << 32 | destination);
	sip_add(&s, (u64)BE16(room->in4.tcp.header.source) << 48 |
			    (u64)BE16(room->in4.tcp.header.dest) << 32 | BE32(room->in4.tcp.header.seq));
	sip_add(&s, now_slot() << 4 | scale_of(value));

	turn_round(&room->out4.ethernet, &room->in4.ethernet);
	sum = (u64)BE32(source) + BE32(destination);
	length = write_answer(&room->out4.tcp, &room->in4.tcp.header, &offer,
			      cookie_of(sip_end(&s, 3), data_of(&offer)), value, sum + BE16(PROTO_TCP));
	room->out4.ip.version_ihl = 0x45;
	room->out4.ip.tos = 0;
	room->out4.ip.tot_len = BE16(sizeof(struct iphdr) + length);
	room->out4.ip.id = 0;
	room->out4.ip.frag_off = BE16(DONT_FRAGMENT);
	room->out4.ip.ttl = TTL;
	room->out4.ip.protocol = PROTO_TCP;
	room->out4.ip.check = ~folded(sum + BE16(0x4500) + BE16(sizeof(struct iphdr) + length) +
				      BE16(DONT_FRAGMENT) + BE16(TTL << 8 | PROTO_TCP));
	room->out4.ip.saddr = BE32(destination);
	room->out4.ip.daddr = BE32(source);
	return send_back(skb, &room->out4.ethernet, &room->out4.tcp, TCP4, length);
}

INLINE u64 pair_of(const be32 *words)
{
	return (u64)BE32(words[0]) << 32 | BE32(words[1]);
}

INLINE int answer6(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = (void *)(long)skb->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct room *room;
	struct offer offer;
	struct key *key;
	struct sip s;
	u32 length, header, zero = 0, value;
	u64 high, low, sum;

	if ((void *)(tcp + 1) > end || (ip->version_class_label & BE32(0xF0000000)) != BE32(6U << 28) ||
	    ip->nexthdr != PROTO_TCP ||
	    (tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
		return TC_ACT_UNSPEC;
	room = map_lookup_elem(&rooms, &zero);
	if (!room || skb_load_bytes(skb, 0, &room->in6.ethernet, LEAST6))
		return TC_ACT_UNSPEC;
	__builtin_memcpy(room->vip.address, room->in6.ip.daddr, sizeof(room->vip.address));
	room->vip.port = room->in6.tcp.header.dest;
	value = offered(room);
	if (!value)
		return TC_ACT_UNSPEC;
	high = pair_of(room->in6.ip.saddr);
	low = pair_of(room->in6.ip.saddr + 2);
	header = (room->in6.tcp.header.doff >> 4) * 4;
	if (high >> 56 == 0xFF || (!high && low < 2) ||
	    (high == pair_of(room->in6.ip.daddr) && low == pair_of(room->in6.ip.daddr + 2)) ||
	    header < sizeof(struct tcphdr) || BE16(room->in6.ip.payload_len) < header)
		return TC_ACT_UNSPEC;
	if (!read_offer(skb, room, LEAST6, (header - sizeof(struct tcphdr)) & 63, 1220, &offer))
		return TC_ACT_UNSPEC;

	key = map_lookup_elem(&keys, &zero);
	if (!key)
		return TC_ACT_UNSPEC;
	sip_begin(&s, key);
	sip_add(&s, high);
	sip_add(&s, low);
	sip_add(&s, pair_of(room->in6.ip.daddr));
	sip_add(&s, pair_of(room->in6.ip.daddr + 2));
	sip_add(&s, (u64)BE16(room->in6.tcp.header.source) << 48 |
			    (u64)BE16(room->in6.tcp.header.dest) << 32 | BE32(room->in6.tcp.header.seq));
	sip_add(&s, now_slot() << 4 | scale_of(value));

	turn_round(&room->out6.ethernet, &room->in6.ethernet);
	sum = (u32)csum_diff(0, 0, room->in6.ip.saddr, 2 * sizeof(room->in6.ip.saddr), 0);
	length = write_answer(&room->out6.tcp, &room->in6.tcp.header, &offer,
			      cookie_of(sip_end(&s, 6), data_of(&offer)), value, sum + BE16(PROTO_TCP));
	room->out6.ip.version_class_label = BE32(6U << 28);
	room->out6.ip.payload_len = BE16(length);
	room->out6.ip.nexthdr = PROTO_TCP;
	room->out6.ip.hop_limit = TTL;
	__builtin_memcpy(room->out6.ip.saddr, room->in6.ip.daddr, sizeof(room->out6.ip.saddr));
	__builtin_memcpy(room->out6.ip.daddr, room->in6.ip.saddr, sizeof(room->out6.ip.daddr));
	return send_back(skb, &room->out6.ethernet, &room->out6.tcp, TCP6, length);
}

SEC("tc/shield")
int shield(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == BE16(ETH_P_IP))
		return answer4(skb);
	if (skb->protocol == BE16(ETH_P_IPV6))
		return answer6(skb);
	return TC_ACT_UNSPEC;
}
