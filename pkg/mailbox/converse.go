package mailbox

import (
	"context"
	"time"
)

// dialect is what differs between the protocols on the way to a secure connection; C is what a server says it can do.
type dialect[C any] struct {
	greeting     func(*talk) error
	capabilities func(*talk) (C, error)
	startTLS     func(*talk, C) error
	shown        func(C) string
}

// converse takes a fresh connection as far as the sign-in: TLS from the first byte or by STARTTLS or STLS, the
// greeting, and what the server says it can do. What it said in clear does not count once the connection is secure.
func converse[C any](ctx context.Context, o *opening, g *guard, d dialect[C]) (t *talk, caps C, err error) {
	t = newTalk(ctx, &o.Settings, g)
	if o.Security == ImplicitTLS {
		if t.conn, err = o.secure(ctx, g); err != nil {
			return nil, caps, err
		}
	}
	began := time.Now()
	err = d.greeting(t)
	o.did(stepGreeting, began, o.siblingOf(ctx, g, err), err)
	if err != nil {
		return nil, caps, err
	}

	began = time.Now()
	caps, err = d.capabilities(t)
	if err == nil && o.Security == StartTLS {
		err = d.startTLS(t, caps)
	}
	if err == nil && o.Security == StartTLS {
		if t.conn, err = o.secure(ctx, g); err != nil {
			return nil, caps, err // told as the step of TLS
		}
		began = time.Now()
		caps, err = d.capabilities(t)
	}
	if err != nil {
		o.did(stepCapabilities, began, nil, err)
		return nil, caps, err
	}
	o.did(stepCapabilities, began, map[string]string{"capabilities": d.shown(caps)}, nil)
	return t, caps, nil
}
