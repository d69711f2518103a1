/* Drops most SYNs of clients that a service keeps refusing, where they enter a link.
 *
 * Workers refuse (core/pools/gate.py). A client that goes on sending SYNs far beyond its limits costs
 * them several microseconds for each, so the supervisor puts it into `turns`, and attaches the
 * program while somebody is there. One SYN in each interval still gets to the worker: so a client is
 * let in again as soon as it may be, and is told that it is refused if the service does that.
 */

#include "kernel.h"

/* A service by its VIP, the longest match of address (IPv4 in IPv6's mapped form) and port. The value
 * is the service's number, 0 for one that refuses nobody here. */
struct vip {
	u32 prefix;	/* in bits */
	be32 address[4];
	be16 port;
	u16 unused;
};

enum {
	VIP_SIZE = 22,	/* without what aligns the next one */
	VIP_BITS = 8 * (VIP_SIZE - 4),
};

/* A client of a service: an address, of IPv6 the network of 64 bits. */
struct client {
	be32 address[4];
	u32 service;
};

struct turn {
	u64 interval;	/* in nanoseconds */
	u64 next;	/* when the next SYN may pass */
	u64 dropped;
};

struct ethhdr {
	u8 dest[6];
	u8 source[6];
	be16 protocol;
};
SIZE_CHECK(struct ethhdr, ETH_HLEN);

MAP(vips) = { MAP_LPM_TRIE, VIP_SIZE, sizeof(u32), 65536, NO_PREALLOC };
MAP(turns) = { MAP_HASH, sizeof(struct client), sizeof(struct turn), 1024, 0 };

char _license[] SEC("license") = "GPL";

INLINE int judge(struct vip *vip, struct client *client)
{
	u32 *service;
	struct turn *turn;
	u64 now;

	vip->prefix = VIP_BITS;
	vip->unused = 0;
	service = map_lookup_elem(&vips, vip);
	if (!service || !*service)
		return TC_ACT_UNSPEC;
	client->service = *service;
	turn = map_lookup_elem(&turns, client);
	if (!turn)
		return TC_ACT_UNSPEC;
	now = ktime_get_ns();
	if (now >= turn->next) {
		turn->next = now + turn->interval;
		return TC_ACT_UNSPEC;
	}
	__sync_fetch_and_add(&turn->dropped, 1);
	return TC_ACT_SHOT;
}

INLINE int opens(const struct tcphdr *tcp)
{
	return (tcp->flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

INLINE int judge4(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct vip vip;
	struct client client;

	if ((void *)(tcp + 1) > end || ip->version_ihl != 0x45 || ip->protocol != PROTO_TCP ||
	    ip->frag_off & BE16(0x3FFF) || !opens(tcp))
		return TC_ACT_UNSPEC;
	vip.address[0] = client.address[0] = 0;
	vip.address[1] = client.address[1] = 0;
	vip.address[2] = client.address[2] = BE32(0xFFFF);
	vip.address[3] = ip->daddr;
	vip.port = tcp->dest;
	client.address[3] = ip->saddr;
	return judge(&vip, &client);
}

INLINE int judge6(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = (void *)(long)skb->data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct vip vip;
	struct client client;

	if ((void *)(tcp + 1) > end || ip->nexthdr != PROTO_TCP || !opens(tcp))
		return TC_ACT_UNSPEC;
	vip.address[0] = ip->daddr[0];
	vip.address[1] = ip->daddr[1];
	vip.address[2] = ip->daddr[2];
	vip.address[3] = ip->daddr[3];
	vip.port = tcp->dest;
	client.address[0] = ip->saddr[0];
	client.address[1] = ip->saddr[1];
	client.address[2] = 0;
	client.address[3] = 0;
	return judge(&vip, &client);
}

SEC("tc/turnstile")
int turnstile(struct __sk_buff *skb)
{
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (skb->protocol == BE16(ETH_P_IP))
		return judge4(skb);
	if (skb->protocol == BE16(ETH_P_IPV6))
		return judge6(skb);
	return TC_ACT_UNSPEC;
}
