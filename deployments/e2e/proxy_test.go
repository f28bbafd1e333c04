package e2e

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
)

// proxy stands between Posthorn and a mail server. It keeps what the server says, and can fall silent.
type proxy struct {
	listener net.Listener
	target   string
	serving  sync.WaitGroup

	mu     sync.Mutex
	silent bool
	conns  map[net.Conn]bool
	said   bytes.Buffer // by the server
	asked  bytes.Buffer // by Posthorn
	over   bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: target, conns: map[net.Conn]bool{}}
	p.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if p.keep(conn) {
				p.serving.Go(func() { p.serve(conn) })
			}
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.over = true
		p.mu.Unlock()
		p.cut()
		p.serving.Wait()
	})
	return p
}

func (p *proxy) port() int {
	_, port, _ := net.SplitHostPort(p.listener.Addr().String())
	n, _ := strconv.Atoi(port) // a listener's address has a number
	return n
}

// keep remembers a connection so that it can be cut.
func (p *proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		_ = conn.Close()
		return false
	}
	p.conns[conn] = true
	return true
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close()
	}
	clear(p.conns)
}

// beSilent makes the server say nothing any more to connections that are made from now on, or speak again.
func (p *proxy) beSilent(silent bool) {
	p.mu.Lock()
	p.silent = silent
	p.mu.Unlock()
	p.cut()
}

// forget begins the record anew.
func (p *proxy) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said.Reset()
	p.asked.Reset()
}

// record is what the server has said and what it was asked, since forget.
func (p *proxy) record() (said, asked []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.said.Bytes()), bytes.Clone(p.asked.Bytes())
}

func (p *proxy) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	p.mu.Lock()
	silent := p.silent
	p.mu.Unlock()
	if silent {
		_, _ = io.Copy(io.Discard, conn) // until the client gives up
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil || !p.keep(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(server, conn, &p.asked) })
	both.Go(func() { p.pass(conn, server, &p.said) })
	both.Wait()
}

func (p *proxy) pass(to, from net.Conn, record *bytes.Buffer) {
	chunk := make([]byte, 32<<10)
	for {
		n, err := from.Read(chunk)
		p.mu.Lock()
		record.Write(chunk[:n])
		p.mu.Unlock()
		if n > 0 {
			if _, failed := to.Write(chunk[:n]); failed != nil {
				err = failed
			}
		}
		if err != nil {
			_ = to.Close() // the other direction ends with this one
			_ = from.Close()
			return
		}
	}
}
