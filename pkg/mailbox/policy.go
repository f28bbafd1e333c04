package mailbox

import (
	"fmt"
	"net/netip"

	"code.dny.dev/ssrf"
)

// metadata are the addresses at which clouds answer questions about the machine, as far as they are not link-local.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("192.0.0.192"),     // Oracle
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// permits tells whether an address may be dialled. It is asked for the address that is really dialled.
func (p NetworkPolicy) permits(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case !addr.IsValid(), addr.IsUnspecified(), addr.IsMulticast(), addr.IsLinkLocalUnicast(),
		addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s is never dialled", addr)
	}
	for _, m := range metadata {
		if addr == m {
			return fmt.Errorf("%s is never dialled", addr)
		}
	}
	if p == PublicOnly {
		return ssrf.New(ssrf.WithAnyPort()).SafeAddr(addr)
	}
	return nil
}
