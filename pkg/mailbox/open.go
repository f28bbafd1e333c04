package mailbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/idna"

	"posthorn/pkg/fault"
)

const defaultTimeout = 20 * time.Second

// Open connects, secures the connection, signs in and opens the Inbox. See [Settings] for time-outs. Once ctx has ended
// its error is returned as it is.
func Open(ctx context.Context, settings Settings, mode Mode) (Session, error) {
	return open(ctx, settings, mode, nil)
}

func open(ctx context.Context, s Settings, mode Mode,
	watch func(string, time.Duration, map[string]string, error)) (Session, error) {
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if strings.ContainsAny(s.Username+s.Password, "\r\n\x00") {
		return nil, fault.New(fault.AuthRejected, errors.New("a line break or NUL in user name or password"), params(&s))
	}
	switch s.Security {
	case "":
		s.Security = ImplicitTLS
	case ImplicitTLS, StartTLS, Plain:
	default:
		return nil, fault.New(fault.TLSHandshake, fmt.Errorf("no such security: %q", s.Security), params(&s))
	}
	if host, err := idna.Lookup.ToASCII(s.Host); err == nil && !isASCII(s.Host) {
		s.Host = host
	}
	if trace := s.Trace; trace != nil {
		var mu sync.Mutex // answers arrive on a goroutine of their own
		s.Trace = func(direction, line string) {
			mu.Lock()
			defer mu.Unlock()
			trace(direction, line)
		}
	}
	o := &opening{Settings: s, watch: watch}
	g, err := o.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := g.watch(ctx)
	defer stop()
	var session Session
	if s.Protocol == POP3 {
		session, err = o.openPOP(ctx, g)
	} else {
		session, err = o.openIMAP(ctx, g, mode)
	}
	if err != nil {
		_ = g.Close() // the error that counts is the first
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return session, nil
}

// list joins the keys of a set for a text.
func list(set map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), " ")
}
