package archiver

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

// Config of the archiver.
type Config struct {
	// Instance names this process in leases and logs.
	Instance string
	// Network rules which addresses may be dialled.
	Network mailbox.NetworkPolicy
	// Timeout is how long a mail server may be silent; default 20 s.
	Timeout time.Duration
	// Durable tells whether what the store has acknowledged survives a power cut. While it does not, nothing is moved or
	// deleted.
	Durable func(context.Context) (bool, error)
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Deps are what the archiver works with.
type Deps struct {
	Conn      *bus.Conn
	Publisher *bus.Publisher
	Leases    *bus.Leases
	Sources   *source.Store
	Keys      *secret.Keyring
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

func (c *Config) check() error {
	var errs []error
	if c.Instance == "" {
		errs = append(errs, errors.New("archiver: Instance is required"))
	}
	if c.Durable == nil {
		errs = append(errs, errors.New("archiver: Durable is required"))
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return errors.Join(errs...)
}
