package mailbox

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// errTooMuch is what a read ends in when the peer has sent more than the current command may cost.
var errTooMuch = errors.New("more bytes than any honest answer has")

const (
	// budgetControl is what a command without content may cost.
	budgetControl = 1 << 20
	// budgetQuiet is what a server may send unasked between two commands.
	budgetQuiet = 64 << 10
	// budgetList caps the answer that lists a whole mailbox: enough for more than a million mails.
	budgetList = 16 << 20
	// slowest is the least a peer must manage on average, in bytes a second, over a command's whole budget.
	slowest = 4 << 10
)

// guard is the connection below TLS. It makes every wait end: when the context ends, when the peer is silent for too
// long while an answer is due, and when it sends more than the budget of the command. The first error stands: the
// libraries above read on after a time-out and would wait again and again. Their own deadlines are ignored, as go-imap
// sets none between answers and a fixed one within a body.
type guard struct {
	net.Conn

	idle time.Duration

	mu       sync.Mutex
	err      error
	armed    bool      // an answer is due
	since    time.Time // when it fell due, or when the last bytes came
	budget   int64
	patience time.Duration // left for waiting, over the whole answer

	certUntil time.Time // when the server's certificate ends; zero in clear
}

func newGuard(conn net.Conn, idle time.Duration) *guard {
	return &guard{Conn: conn, idle: idle, budget: budgetQuiet}
}

// arm says that an answer of at most so many bytes is due. Call it before sending the command: a library's reader
// goroutine reads at any time.
func (g *guard) arm(budget int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = true
	g.since = time.Now()
	g.budget = budget
	g.patience = 3*g.idle + time.Duration(budget/slowest)*time.Second
	g.deadlineLocked()
}

// disarm says that nothing is due; the peer may be silent for as long as it likes.
func (g *guard) disarm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	g.budget = min(g.budget, budgetQuiet)
	g.deadlineLocked()
}

// deadlineLocked also reaches a read that is under way. Its error is the next read's error.
func (g *guard) deadlineLocked() {
	var at time.Time
	if g.armed {
		at = time.Now().Add(min(g.idle, g.patience))
	}
	_ = g.Conn.SetReadDeadline(at)
}

// watch ties the connection to a context until stop is called.
func (g *guard) watch(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = g.fail(context.Cause(ctx)) })
}

// fail ends the connection. The first error is kept and returned.
func (g *guard) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
		_ = g.Conn.Close() // the error that counts is the first
	}
	return g.err
}

// failure is why the connection ended, nil while it lives.
func (g *guard) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// left is how much of the budget is left.
func (g *guard) left() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.budget
}

func (g *guard) Read(p []byte) (int, error) {
	g.mu.Lock()
	if g.err != nil {
		defer g.mu.Unlock()
		return 0, g.err
	}
	if g.budget <= 0 {
		g.mu.Unlock()
		return 0, g.fail(errTooMuch)
	}
	if int64(len(p)) > g.budget {
		p = p[:g.budget]
	}
	g.since = time.Now()
	g.deadlineLocked()
	g.mu.Unlock()

	n, err := g.Conn.Read(p)

	g.mu.Lock()
	g.budget -= int64(n)
	waited := time.Since(g.since)
	if g.armed {
		g.patience -= waited
	}
	late := g.armed && (waited >= g.idle || g.patience <= 0)
	g.mu.Unlock()
	switch {
	case n > 0 && err == nil && !(late && waited < g.idle):
		return n, nil
	case err == nil:
		return n, g.fail(os.ErrDeadlineExceeded) // bytes come, but too slowly
	case errors.Is(err, os.ErrDeadlineExceeded) && !late:
		return g.Read(p) // the deadline was that of an answer which came in time
	}
	return n, g.fail(err)
}

func (g *guard) Write(p []byte) (int, error) {
	if err := g.failure(); err != nil {
		return 0, err
	}
	_ = g.Conn.SetWriteDeadline(time.Now().Add(g.idle)) // a failure shows in the write
	n, err := g.Conn.Write(p)
	if err != nil {
		return n, g.fail(err)
	}
	return n, nil
}

func (g *guard) Close() error { _ = g.fail(net.ErrClosed); return nil }

// The deadlines of the libraries are not ours.
func (g *guard) SetDeadline(time.Time) error      { return nil }
func (g *guard) SetReadDeadline(time.Time) error  { return nil }
func (g *guard) SetWriteDeadline(time.Time) error { return nil }
