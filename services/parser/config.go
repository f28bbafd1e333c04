package parser

import (
	"errors"
)

// Config of the parser.
type Config struct {
	// Instance names this process in logs.
	Instance string
	// Workers is how many mails are read side by side; default 32, enough for the publisher to commit in groups.
	Workers int
	// Memory bounds the raw bytes that are being read at the same time; default 64 MiB. A larger mail is read alone.
	Memory int64
	// Limits of one mail; default [DefaultLimits].
	Limits Limits
}

func (c *Config) check() error {
	if c.Instance == "" {
		return errors.New("parser: Instance is required")
	}
	if c.Workers == 0 {
		c.Workers = 32
	}
	if c.Memory == 0 {
		c.Memory = 64 << 20
	}
	c.Limits = c.Limits.withDefaults()
	return nil
}
