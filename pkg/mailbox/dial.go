package mailbox

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"posthorn/pkg/fault"
)

// Steps of opening a session, in the order in which most servers take them. With STARTTLS the greeting comes before
// TLS.
const (
	stepPolicy       = "policy"
	stepDNS          = "dns"
	stepTCP          = "tcp"
	stepTLS          = "tls"
	stepGreeting     = "greeting"
	stepCapabilities = "capabilities"
	stepSignIn       = "sign-in"
	stepInbox        = "inbox"
	stepArchive      = "archive"
	stepRights       = "rights"
	stepBacklog      = "backlog"
)

// opening is one attempt to open a session. watch, when set, is told every step: how long it took, what was learnt, and
// why it failed.
type opening struct {
	Settings

	watch func(step string, took time.Duration, facts map[string]string, err error)
}

func (o *opening) did(step string, began time.Time, facts map[string]string, err error) {
	if o.watch != nil {
		o.watch(step, time.Since(began), facts, err)
	}
}

func (o *opening) params(more ...string) fault.Params {
	return params(&o.Settings, more...)
}

// params are those that many texts name, and more of them as pairs.
func params(s *Settings, more ...string) fault.Params {
	p := fault.Params{
		"host":    s.Host,
		"port":    strconv.Itoa(s.Port),
		"seconds": strconv.Itoa(int(max(time.Second, s.Timeout).Round(time.Second) / time.Second)),
	}
	for i := 0; i+1 < len(more); i += 2 {
		p[more[i]] = more[i+1]
	}
	return p
}

// dial looks the name up and connects. The connection is not secured yet.
func (o *opening) dial(ctx context.Context) (*guard, error) {
	began := time.Now()
	addrs, err := o.lookup(ctx)
	if err != nil {
		o.did(stepDNS, began, nil, err)
		return nil, err
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	o.did(stepDNS, began, map[string]string{"addresses": strings.Join(texts, " ")}, nil)

	began = time.Now()
	addrs, err = o.permitted(addrs)
	o.did(stepPolicy, began, nil, err)
	if err != nil {
		return nil, err
	}

	began = time.Now()
	conn, err := o.connect(ctx, addrs, o.Port)
	if err != nil {
		o.did(stepTCP, began, o.sibling(ctx, addrs, err), err)
		return nil, err
	}
	o.did(stepTCP, began, map[string]string{"address": conn.RemoteAddr().String()}, nil)
	return newGuard(conn, o.Timeout), nil
}

func (o *opening) lookup(ctx context.Context) ([]netip.Addr, error) {
	host := strings.TrimSuffix(strings.ToLower(o.Host), ".")
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return []netip.Addr{addr}, nil
	}
	switch {
	case host == "" || host == "invalid" || strings.HasSuffix(host, ".invalid"):
		return nil, fault.New(fault.DNSNoSuchHost, nil, o.params())
	case host == "localhost" || strings.HasSuffix(host, ".localhost"):
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	bounded, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(bounded, "ip", host)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound && !e.IsTimeout {
			return nil, fault.New(fault.DNSNoSuchHost, err, o.params())
		}
		return nil, fault.New(fault.DNSFailed, err, o.params())
	}
	if len(addrs) == 0 {
		return nil, fault.New(fault.DNSNoSuchHost, nil, o.params())
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	// IPv4 first: where IPv6 is set up but leads nowhere, every connection would wait for it.
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return addrs, nil
}

func (o *opening) permitted(addrs []netip.Addr) ([]netip.Addr, error) {
	var permitted []netip.Addr
	var refusal error
	for _, a := range addrs {
		if err := o.Network.permits(a); err == nil {
			permitted = append(permitted, a)
		} else if refusal == nil {
			refusal = fault.New(fault.PolicyAddress, err, o.params("address", a.String()))
		}
	}
	if len(permitted) == 0 {
		return nil, refusal
	}
	return permitted, nil
}

// connect tries the addresses one after the other; the last error counts, as the others are about the same server.
func (o *opening) connect(ctx context.Context, addrs []netip.Addr, port int) (net.Conn, error) {
	dialer := net.Dialer{
		Timeout: max(o.Timeout/time.Duration(len(addrs)), min(o.Timeout, 5*time.Second)),
		Control: func(_, address string, _ syscall.RawConn) error {
			dialled, err := netip.ParseAddrPort(address)
			if err != nil {
				return err
			}
			return o.Network.permits(dialled.Addr())
		},
	}
	var last error
	for _, a := range addrs {
		//nolint:gosec // the port comes from a checked configuration
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(a, uint16(port)).String())
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		last = o.dialFault(err)
	}
	return nil, last
}

func (o *opening) dialFault(err error) error {
	var code fault.Code
	netErr, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		code = fault.TCPRefused
	case isNet && netErr.Timeout(), errors.Is(err, syscall.ETIMEDOUT):
		code = fault.TCPTimeout
	case errors.Is(err, syscall.ECONNRESET):
		code = fault.TCPClosed
	default:
		code = fault.TCPUnreachable
	}
	return fault.New(code, err, o.params())
}

// siblings are the ports that speak the same protocol with and without TLS from the first byte.
var siblings = map[int]int{143: 993, 993: 143, 110: 995, 995: 110}

// sibling, on behalf of a connection test, looks whether the other port of the protocol answers.
func (o *opening) sibling(ctx context.Context, addrs []netip.Addr, err error) map[string]string {
	other, ok := siblings[o.Port]
	code := fault.CodeOf(err)
	if o.watch == nil || !ok || (code != fault.TCPRefused && code != fault.TLSMode && code != fault.TLSHandshake) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, min(o.Timeout, 5*time.Second))
	defer cancel()
	conn, dialErr := o.connect(bounded, addrs, other)
	if dialErr != nil {
		return nil
	}
	_ = conn.Close() // nothing was sent
	return map[string]string{"hint_port": strconv.Itoa(other)}
}

// siblingOf is sibling for a connection that was made.
func (o *opening) siblingOf(ctx context.Context, g *guard, err error) map[string]string {
	addr, parseErr := netip.ParseAddrPort(g.RemoteAddr().String())
	if parseErr != nil || err == nil {
		return nil
	}
	return o.sibling(ctx, []netip.Addr{addr.Addr()}, err)
}

// secure makes the TLS handshake. No ALPN is offered: some providers end the connection over "imap".
func (o *opening) secure(ctx context.Context, g *guard) (*tls.Conn, error) {
	began := time.Now()
	conn := tls.Client(g, &tls.Config{
		ServerName: strings.TrimSuffix(strings.Trim(o.Host, "[]"), "."),
		RootCAs:    o.RootCAs,
		MinVersion: tls.VersionTLS12,
	})
	g.arm(budgetControl)
	defer g.disarm()
	if err := conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err = o.tlsFault(err)
		_ = g.fail(err)
		o.did(stepTLS, began, o.siblingOf(ctx, g, err), err)
		return nil, err
	}
	state := conn.ConnectionState()
	facts := map[string]string{"version": tls.VersionName(state.Version)}
	if len(state.PeerCertificates) > 0 {
		leaf := state.PeerCertificates[0]
		facts["names"] = strings.Join(names(leaf), " ")
		facts["issuer"] = leaf.Issuer.String()
		g.certUntil = leaf.NotAfter
		facts["not_after"] = leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	o.did(stepTLS, began, facts, nil)
	return conn, nil
}

func (o *opening) tlsFault(err error) error {
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		issuer := ""
		if e.Cert != nil {
			issuer = e.Cert.Issuer.String()
		}
		return fault.New(fault.TLSUnknownCA, err, o.params("issuer", issuer))
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		made := strings.Join(names(e.Certificate), ", ")
		return fault.New(fault.TLSName, err, o.params("names", made))
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired && e.Cert != nil {
		return fault.New(fault.TLSExpired, err, o.params(
			"from", e.Cert.NotBefore.UTC().Format(time.DateOnly), "until", e.Cert.NotAfter.UTC().Format(time.DateOnly)))
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fault.New(fault.TLSMode, err, o.params("detail", "The server answered in plain text."))
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
		return fault.New(fault.ProtocolTimeout, err, o.params("step", "TLS handshake"))
	}
	return fault.New(fault.TLSHandshake, err, o.params())
}

// names a certificate is made for.
func names(cert *x509.Certificate) []string {
	if cert == nil {
		return nil
	}
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 && cert.Subject.CommonName != "" {
		names = append(names, cert.Subject.CommonName)
	}
	return names
}

// silentTLS tells, after a server has not greeted us in plain text, whether it waits for TLS instead: it makes one more
// connection and a handshake.
func (o *opening) silentTLS(ctx context.Context, addr net.Addr) bool {
	bounded, cancel := context.WithTimeout(ctx, min(o.Timeout, 5*time.Second))
	defer cancel()
	to, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return false
	}
	conn, err := o.connect(bounded, []netip.Addr{to.Addr()}, o.Port)
	if err != nil {
		return false
	}
	g := newGuard(conn, min(o.Timeout, 5*time.Second))
	defer func() { _ = g.Close() }()
	g.arm(budgetControl)
	t := tls.Client(g, &tls.Config{ServerName: o.Host, RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12})
	err = t.HandshakeContext(bounded)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	return err == nil || untrusted
}

// ioFault says why reading or writing ended; ctx errors stand as they are.
func ioFault(ctx context.Context, s *Settings, g *guard, step string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	cause := g.failure()
	code := fault.ProtocolBroken
	netErr, isNet := errors.AsType[net.Error](cause)
	switch {
	case cause == nil, errors.Is(cause, net.ErrClosed):
		// We, or the library, gave the connection up: an answer was no good.
	case errors.Is(cause, errTooMuch):
		code = fault.ProtocolTooMuch
	case isNet && netErr.Timeout(), errors.Is(cause, os.ErrDeadlineExceeded):
		code = fault.ProtocolTimeout
	case errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF), errors.Is(cause, context.Canceled),
		isNet:
		code = fault.ProtocolClosed
	}
	// As text: whoever reads a body must not find an io.EOF in the chain of its error.
	return fault.New(code, errors.New(errors.Join(cause, err).Error()), params(s, "step", step))
}
