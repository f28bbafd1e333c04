package router

import (
	"errors"
)

// Config of the router.
type Config struct {
	// Instance names this process in logs.
	Instance string
	// Workers is how many mails are routed side by side; default 64.
	Workers int
}

func (c *Config) check() error {
	if c.Instance == "" {
		return errors.New("router: Instance is required")
	}
	if c.Workers == 0 {
		c.Workers = 64
	}
	return nil
}
