package fetcher

import (
	"errors"
	"time"

	"posthorn/pkg/stage"
)

// Config of the fetcher.
type Config struct {
	// Instance names this process in leases, states and receipts.
	Instance string
	// Mail is how mail servers are reached.
	Mail stage.MailConfig
	// SpoolDir holds large mails while they pass through, as files without a name.
	SpoolDir string
	// Now is the clock; default time.Now.
	Now func() time.Time
}

func (c *Config) check() error {
	var errs []error
	if c.Instance == "" {
		errs = append(errs, errors.New("fetcher: Instance is required"))
	}
	if c.SpoolDir == "" {
		errs = append(errs, errors.New("fetcher: SpoolDir is required"))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return errors.Join(errs...)
}
