/* The kernel's interface, as far as featherlb's eBPF programs use it: structures and numbers of
 * include/uapi/linux/bpf.h and of the protocols. So a compiler is all that building them takes. */

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u16 be16;
typedef u32 be32;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* A function with a stack of its own: at most 512 bytes for all that call one another. */
#define NOINLINE static __attribute__((noinline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define SIZE_CHECK(type, size) _Static_assert(sizeof(type) == (size), #type)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) ((be16)__builtin_bswap16(x))
#define BE32(x) ((be32)__builtin_bswap32(x))
#define LE32(x) ((u32)(x))
#else
#define BE16(x) ((be16)(x))
#define BE32(x) ((be32)(x))
#define LE32(x) ((u32)__builtin_bswap32(x))
#endif
#define SWAPPED(x) __builtin_bswap32(x)

/* An access that the compiler neither repeats nor splits: others change the variable, too. */
#define ONCE(x) (*(volatile __typeof__(x) *)&(x))

/* Maps: the loader (featherlb/system/elf.py) reads these out of the section `maps`. */
struct map {
	u32 type;
	u32 key_size;
	u32 value_size;
	u32 max_entries;
	u32 flags;
};

#define MAP(name) struct map name SEC("maps")

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_HASH = 5,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_LPM_TRIE = 11,
	MAP_ARRAY_OF_MAPS = 12,
	MAP_QUEUE = 22,
	MAP_STACK = 23,
	MAP_RINGBUF = 27,
};

enum {
	NO_PREALLOC = 1 << 0,
	MMAPABLE = 1 << 10,
};

/* Of map_update_elem: only if the key isn't there. */
#define NOEXIST 1

enum {
	RB_NO_WAKEUP = 1,
};

/* What ringbuf_query tells, in bytes. */
enum {
	RB_AVAIL_DATA = 0,
	RB_RING_SIZE = 1,
};

/* Verdicts of a program at a link's ingress. UNSPEC lets later programs and filters see the packet;
 * OK would hide it from them. */
enum {
	TC_ACT_UNSPEC = -1,
	TC_ACT_OK = 0,
	TC_ACT_SHOT = 2,
	TC_ACT_REDIRECT = 7,
};

struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol;
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
	u32 tc_index;
	u32 cb[5];
	u32 hash;
	u32 tc_classid;
	u32 data;
	u32 data_end;
	u32 napi_id;
	u32 family;
	u32 remote_ip4;
	u32 local_ip4;
	u32 remote_ip6[4];
	u32 local_ip6[4];
	u32 remote_port;
	u32 local_port;
	u32 data_meta;
	u64 flow_keys;
	u64 tstamp;
	u32 wire_len;
	u32 gso_segs;
	u64 sk;
	u32 gso_size;
};

#define PACKET_HOST 0

/* Helpers: functions of the kernel, by number. */

static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const map_update_elem)(void *map, const void *key, const void *value,
				     u64 flags) = (void *)2;
static long (*const map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const ktime_get_ns)(void) = (void *)5;
static long (*const skb_store_bytes)(struct __sk_buff *skb, u32 offset, const void *from, u32 len,
				     u64 flags) = (void *)9;
static long (*const l3_csum_replace)(struct __sk_buff *skb, u32 offset, u64 from, u64 to,
				     u64 size) = (void *)10;
static long (*const l4_csum_replace)(struct __sk_buff *skb, u32 offset, u64 from, u64 to,
				     u64 flags) = (void *)11;
static long (*const redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*const skb_load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;
static long (*const csum_diff)(const be32 *from, u32 from_size, const be32 *to, u32 to_size,
			       u32 seed) = (void *)28;
static long (*const skb_change_tail)(struct __sk_buff *skb, u32 len, u64 flags) = (void *)38;
static long (*const skb_pull_data)(struct __sk_buff *skb, u32 len) = (void *)39;
static long (*const csum_update)(struct __sk_buff *skb, u32 csum) = (void *)40;
static long (*const fib_lookup)(void *ctx, void *params, int plen, u32 flags) = (void *)69;
static long (*const ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static void *(*const ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*const ringbuf_submit)(void *data, u64 flags) = (void *)132;
static u64 (*const ringbuf_query)(void *ring, u64 what) = (void *)134;
static long (*const redirect_neigh)(u32 ifindex, void *params, int plen, u64 flags) = (void *)152;
static u64 (*const ktime_get_coarse_ns)(void) = (void *)160;

/* Flags of l4_csum_replace. */
enum {
	F_PSEUDO_HDR = 1 << 4,
	F_MARK_MANGLED_0 = 1 << 5,
};

struct bpf_fib_lookup {
	u8 family;
	u8 l4_protocol;
	be16 sport;
	be16 dport;
	u16 tot_len;	/* afterwards the path's MTU */
	u32 ifindex;
	union {
		u8 tos;
		be32 flowinfo;
		u32 rt_metric;
	};
	union {
		be32 ipv4_src;
		be32 ipv6_src[4];
	};
	union {
		be32 ipv4_dst;
		be32 ipv6_dst[4];
	};
	be16 h_vlan_proto;
	be16 h_vlan_tci;
	u8 smac[6];
	u8 dmac[6];
};
SIZE_CHECK(struct bpf_fib_lookup, 64);

enum {
	FIB_SUCCESS = 0,
	FIB_BLACKHOLE = 1,
	FIB_UNREACHABLE = 2,
	FIB_PROHIBIT = 3,
	FIB_NOT_FWDED = 4,
	FIB_FWD_DISABLED = 5,
	FIB_UNSUPP_LWT = 6,
	FIB_NO_NEIGH = 7,
	FIB_FRAG_NEEDED = 8,
};

struct bpf_redir_neigh {
	u32 nh_family;
	union {
		be32 ipv4_nh;
		be32 ipv6_nh[4];
	};
};
SIZE_CHECK(struct bpf_redir_neigh, 20);

/* Protocols. */

enum {
	AF_INET = 2,
	AF_INET6 = 10,
	ETH_HLEN = 14,
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86DD,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
};

/* RFC 791 section 3.1. */
struct iphdr {
	u8 version_ihl;
	u8 tos;
	be16 tot_len;
	be16 id;
	be16 frag_off;
	u8 ttl;
	u8 protocol;
	be16 check;
	be32 saddr;
	be32 daddr;
};
SIZE_CHECK(struct iphdr, 20);

/* RFC 8200 section 3. */
struct ipv6hdr {
	be32 version_class_label;
	be16 payload_len;
	u8 nexthdr;
	u8 hop_limit;
	be32 saddr[4];
	be32 daddr[4];
};
SIZE_CHECK(struct ipv6hdr, 40);

/* RFC 9293 section 3.1. */
struct tcphdr {
	be16 source;
	be16 dest;
	be32 seq;
	be32 ack_seq;
	u8 doff;	/* in its upper half */
	u8 flags;
	be16 window;
	be16 check;
	be16 urg_ptr;
};
SIZE_CHECK(struct tcphdr, 20);

enum {
	TCP_FIN = 1,
	TCP_SYN = 2,
	TCP_RST = 4,
	TCP_ACK = 16,
};

/* RFC 768. */
struct udphdr {
	be16 source;
	be16 dest;
	be16 len;
	be16 check;
};
SIZE_CHECK(struct udphdr, 8);
