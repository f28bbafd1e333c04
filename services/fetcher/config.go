package fetcher

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
)

// Config of the fetcher.
type Config struct {
	// Instance names this process in leases, states and receipts.
	Instance string
	// Network rules which addresses may be dialled.
	Network mailbox.NetworkPolicy
	// SpoolDir holds large mails while they pass through, as files without a name.
	SpoolDir string
	// Timeout is how long a mail server may be silent; default 20 s.
	Timeout time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Deps are what the fetcher works with.
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
		errs = append(errs, errors.New("fetcher: Instance is required"))
	}
	if c.SpoolDir == "" {
		errs = append(errs, errors.New("fetcher: SpoolDir is required"))
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return errors.Join(errs...)
}
