// Package mailboxtest has mail servers to test against: an IMAP and a POP3 server that run in this process and can be
// told to fail, a server that follows a script and may break every rule, and a real Dovecot. The demo program serves
// mail from the first two, so they hold up with ordinary mail programs.
package mailboxtest

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"posthorn/pkg/mailbox"
)

// Mail is one mail of a server's mailbox.
type Mail struct {
	UID   uint32 // IMAP
	UIDL  string // POP3
	Raw   []byte
	Flags []string // as in `\Seen`
}

// TB is the part of testing.TB that servers for tests need, so that programs that serve the demo need no testing
// package.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(call func())
	TempDir() string
}

// listener counts what is sent and closes all of its connections with itself.
type listener struct {
	net.Listener

	sent     atomic.Int64
	accepted atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
	over  bool
}

func listen(addr string) (*listener, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{Listener: l, conns: map[net.Conn]bool{}}, nil
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		_ = conn.Close() // nobody serves it any more
		return nil, net.ErrClosed
	}
	counted := &countedConn{Conn: conn, l: l}
	l.conns[counted] = true
	return counted, nil
}

func (l *listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	l.over = true
	conns := l.conns
	l.conns = map[net.Conn]bool{}
	l.mu.Unlock()
	for conn := range conns {
		_ = conn.Close() // closing is all that is wanted
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// serveEach serves every connection in a goroutine of its own, until the listener is closed.
func (l *listener) serveEach(sessions *sync.WaitGroup, serve func(net.Conn)) {
	sessions.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() { serve(conn) })
		}
	})
}

func (l *listener) port() int {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}
	return n
}

func (l *listener) host() string {
	host, _, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return ""
	}
	return host
}

type countedConn struct {
	net.Conn

	l *listener
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.l.sent.Add(int64(n))
	return n, err
}

func (c *countedConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// settings of an account on a server here.
func settings(protocol mailbox.Protocol, l *listener, security mailbox.Security, ca *CA,
	user, password string) mailbox.Settings {
	return mailbox.Settings{
		Protocol: protocol,
		Host:     l.host(),
		Port:     l.port(),
		Security: security,
		Username: user,
		Password: password,
		RootCAs:  ca.Pool(),
	}
}
