package router

import (
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
)

// Config of the router.
type Config struct {
	// Instance names this process in logs.
	Instance string
	// Workers is how many mails are routed side by side; default 64.
	Workers int
}

// Deps are what the router works with.
type Deps struct {
	Conn      *bus.Conn
	Publisher *bus.Publisher
	Metrics   prometheus.Registerer
	Log       *slog.Logger
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
