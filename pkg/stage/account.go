package stage

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
)

// Deps are what stages work with. Leases, Sources and Keys are for those that own mailboxes.
type Deps struct {
	Conn      *bus.Conn
	Publisher *bus.Publisher
	Leases    *bus.Leases
	Sources   *source.Store
	Keys      *secret.Keyring
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// MailConfig is how a stage reaches mail servers.
type MailConfig struct {
	// Network rules which addresses may be dialled.
	Network mailbox.NetworkPolicy
	// Timeout is how long a mail server may be silent; 0 is 20 s.
	Timeout time.Duration
}

// Session is a signed-in session that holds the maildrop lock of a POP3 source for as long as it is open: a maildrop
// serves one session at a time, whichever stage opened it.
type Session struct {
	mailbox.Session

	lock *bus.Lease
	log  *slog.Logger
}

// Settings opens the stored credential of a source.
func (d Deps) Settings(s source.Source, config MailConfig) (mailbox.Settings, error) {
	settings, err := s.Settings(d.Keys)
	settings.Network, settings.Timeout = config.Network, config.Timeout
	return settings, err
}

// SignIn opens a session with a source. trace may be nil.
func (d Deps) SignIn(
	ctx context.Context, s source.Source, config MailConfig, mode mailbox.Mode, trace func(direction, line string),
) (*Session, error) {
	settings, err := d.Settings(s, config)
	if err != nil {
		return nil, err
	}
	settings.Trace = trace
	session := &Session{log: d.Log.With("source", s.ID)}
	if session.lock, err = d.LockMaildrop(ctx, s); err != nil {
		return nil, err
	}
	if session.Session, err = mailbox.Open(ctx, settings, mode); err != nil {
		session.unlock()
		return nil, err
	}
	return session, nil
}

// LockMaildrop takes the lock of a POP3 source's maildrop; nil for other sources.
func (d Deps) LockMaildrop(ctx context.Context, s source.Source) (*bus.Lease, error) {
	if s.Type != mailbox.POP3 {
		return nil, nil //nolint:nilnil // no lock is needed
	}
	return d.Leases.Acquire(ctx, "maildrop."+s.ID)
}

// Fresh tells whether the maildrop lock, if there is one, still holds.
func (s *Session) Fresh() bool { return s.lock == nil || s.lock.Fresh() }

// Close ends the session and gives the maildrop free. What goes wrong then changes nothing, and is logged only.
func (s *Session) Close() {
	if err := s.Session.Close(); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Debug("closing the session", "error", err)
	}
	s.unlock()
}

func (s *Session) unlock() {
	if s.lock != nil {
		Release(s.lock, s.log)
	}
}
