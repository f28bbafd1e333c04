package archiver

import (
	"context"
	"errors"
	"time"

	"posthorn/pkg/stage"
)

// Config of the archiver.
type Config struct {
	// Instance names this process in leases and logs.
	Instance string
	// Mail is how mail servers are reached.
	Mail stage.MailConfig
	// Durable tells whether what the store has acknowledged survives a power cut. While it does not, nothing is moved or
	// deleted.
	Durable func(context.Context) (bool, error)
	// Now is the clock; default time.Now.
	Now func() time.Time
}

func (c *Config) check() error {
	var errs []error
	if c.Instance == "" {
		errs = append(errs, errors.New("archiver: Instance is required"))
	}
	if c.Durable == nil {
		errs = append(errs, errors.New("archiver: Durable is required"))
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return errors.Join(errs...)
}
