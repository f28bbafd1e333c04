package mailbox

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pop3 "github.com/knadh/go-pop3"

	"posthorn/pkg/fault"
)

// openPOP takes a fresh connection through TLS or STLS, greeting, CAPA and sign-in, none of which go-pop3 can do, and
// hands it on greeted anew.
func (o *opening) openPOP(ctx context.Context, g *guard) (Session, error) {
	t, caps, err := converse(ctx, o, g, dialect[map[string][]string]{
		greeting: o.popGreeting, capabilities: (*talk).popCapabilities, startTLS: o.stls, shown: popCapsText,
	})
	if err != nil {
		return nil, err
	}

	began := time.Now()
	if err := o.popSignIn(t, caps); err != nil {
		o.did(stepSignIn, began, nil, err)
		return nil, err
	}
	o.did(stepSignIn, began, nil, nil)

	began = time.Now()
	session, err := newPOPSession(ctx, &o.Settings, g, t.conn, caps)
	if err != nil {
		o.did(stepInbox, began, nil, err)
		return nil, err
	}
	status := session.Status()
	o.did(stepInbox, began, map[string]string{
		"messages": strconv.Itoa(status.Messages),
		"uidl":     strconv.FormatBool(status.HasUIDL),
	}, nil)
	return session, nil
}

func (o *opening) popGreeting(t *talk) error {
	line, err := t.greeting(o)
	if err != nil {
		return err
	}
	if strings.HasPrefix(line, "* ") {
		return fault.New(fault.ProtocolWrong, nil, o.params("spoken", "IMAP", "wanted", "POP3"))
	}
	err = t.popStatus("greeting", line)
	if r, ok := errors.AsType[refusal](err); ok {
		if f := r.fault(&o.Settings, "greeting", false); f.Code != fault.ProtocolRefused {
			return f
		}
		return fault.New(fault.LimitUnavailable, r, o.params("words", r.words))
	}
	return err
}

// popCapabilities are those of CAPA (RFC 2449) with their arguments; nil when the server does not know the command.
func (t *talk) popCapabilities() (map[string][]string, error) {
	err := t.pop("capabilities", "CAPA", "CAPA")
	if _, ok := errors.AsType[refusal](err); ok {
		return nil, nil // no such command
	}
	if err != nil {
		return nil, err
	}
	lines, err := t.popLines("capabilities", 200)
	if err != nil {
		return nil, err
	}
	caps := map[string][]string{}
	for _, line := range lines {
		if words := strings.Fields(strings.ToUpper(line)); len(words) > 0 {
			caps[words[0]] = words[1:]
		}
	}
	return caps, nil
}

func popCapsText(caps map[string][]string) string {
	names := slices.Sorted(maps.Keys(caps))
	for i, name := range names {
		names[i] = strings.Join(append([]string{name}, caps[name]...), " ")
	}
	return strings.Join(names, ", ")
}

func (o *opening) stls(t *talk, caps map[string][]string) error {
	none := fault.New(fault.TLSNoSTARTTLS, nil, o.params("command", "STLS", "secure_port", "995"))
	if _, ok := caps["STLS"]; caps != nil && !ok {
		return none
	}
	err := t.pop("STLS", "STLS", "STLS")
	if _, ok := errors.AsType[refusal](err); ok {
		return none
	}
	return err
}

func (o *opening) popSignIn(t *talk, caps map[string][]string) error {
	const step = "sign-in"
	_, user := caps["USER"]
	switch {
	case caps == nil || user:
		err := t.pop(step, "USER "+o.Username, "USER …")
		if err == nil {
			err = t.pop(step, "PASS "+o.Password, "PASS …")
		}
		return t.refuse(step, err, true)
	case slices.Contains(caps["SASL"], "PLAIN"):
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + o.Username + "\x00" + o.Password))
		err := t.pop(step, "AUTH PLAIN", "AUTH PLAIN")
		if err == nil {
			err = t.pop(step, plain, "…")
		}
		return t.refuse(step, err, true)
	}
	return fault.New(fault.AuthMechanism, nil, o.params("offered", strings.Join(caps["SASL"], ", ")))
}

// popWire is the signed-in connection as go-pop3 gets it: it begins with a greeting. It makes sure that every status
// line is one, as go-pop3 takes an empty line for success, and it takes the trace.
type popWire struct {
	net.Conn

	guard *guard
	trace func(direction, line string)
	ahead []byte // read before the connection

	mu     sync.Mutex
	due    bool   // the next byte begins a status line
	status []byte // the status line so far, nil when it is complete
	body   int64
}

func (w *popWire) Read(p []byte) (int, error) {
	if len(w.ahead) > 0 {
		n := copy(p, w.ahead)
		w.ahead = w.ahead[n:]
		return n, nil
	}
	n, err := w.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.due {
		w.due = false
		if p[0] != '+' && p[0] != '-' {
			return 0, w.guard.fail(fault.New(fault.ProtocolBroken, errors.New(fault.Quote(string(p[:min(n, 100)]))), nil))
		}
	}
	w.show(p[:n])
	return n, err
}

// show tells the trace of the status line, and counts what follows it.
func (w *popWire) show(b []byte) {
	if w.trace == nil {
		return
	}
	if w.status != nil {
		line, rest, ended := bytes.Cut(b, []byte("\n"))
		if len(w.status) < tracedLine {
			w.status = append(w.status, line[:min(len(line), tracedLine)]...)
		}
		if !ended {
			return
		}
		w.trace("S", strings.TrimRight(string(w.status), "\r\n"))
		w.status = nil
		b = rest
	}
	w.body += int64(len(b))
}

func (w *popWire) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.due = true
	if w.trace != nil {
		if w.body > 0 {
			w.trace("S", "{"+strconv.FormatInt(w.body, 10)+" bytes}")
		}
		w.body = 0
		w.status = []byte{}
		w.trace("C", strings.TrimRight(string(p), "\r\n"))
	}
	w.mu.Unlock()
	return w.Conn.Write(p)
}

// popDialer gives go-pop3 a connection that is there already.
type popDialer struct{ conn net.Conn }

func (d popDialer) Dial(string, string) (net.Conn, error) { return d.conn, nil }

func newPOPClient(w *popWire) (*pop3.Conn, error) {
	w.ahead = []byte("+OK signed in\r\n")
	return pop3.New(pop3.Opt{Dialer: popDialer{w}}).NewConn()
}
