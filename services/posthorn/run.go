package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
	"posthorn/services/allinone"
)

// runFlags are the flags of the commands that run stages.
type runFlags struct {
	Stages []string `default:"all" sep:"," placeholder:"NAME" group:"what" help:"${help_stages}"`

	Sources       string        `placeholder:"FILE" type:"path" group:"what" help:"${help_sources}"`
	Prune         bool          `group:"what" help:"${help_prune}"`
	ReadyJSON     bool          `name:"ready-json" group:"what" help:"${help_ready_json}"`
	AllowedPorts  ports         `default:"110,143,993,995" placeholder:"PORT,…" group:"mail" help:"${ports}"`
	NetworkPolicy string        `default:"private-ok" enum:"private-ok,public-only" group:"mail" help:"${policy}"`
	Timeout       time.Duration `default:"20s" placeholder:"20s" group:"mail" help:"${help_timeout}"`
	HTTP          string        `name:"http" default:"127.0.0.1:8080" placeholder:"ADDR" group:"listen" help:"${http}"`
	NATSListen    string        `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" group:"listen" help:"${listen}"`
	NATSMonitor   string        `name:"nats-monitor" placeholder:"URL" group:"store" help:"${help_nats_monitor}"`
	AssumeDurable bool          `group:"store" help:"${help_assume_durable}"`
	MaxStore      source.Size   `default:"0B" placeholder:"10GB" group:"store" help:"${help_max_store}"`
}

// Validate checks what the grammar cannot say.
func (f *runFlags) Validate() error {
	names := []string{"all", allinone.Fetcher, allinone.Parser, allinone.Router, allinone.Archiver}
	for _, stage := range f.Stages {
		if !slices.Contains(names, stage) {
			return usageError{"there is no stage " + quoted(stage) + "; there are: " + strings.Join(names, ", ")}
		}
	}
	if slices.Contains(f.Stages, "all") && len(f.Stages) > 1 {
		return usageError{"--stages: all stands alone"}
	}
	return nil
}

// settings are those of a process with these flags.
func (f *runFlags) settings(p *program) allinone.Config {
	cfg := allinone.DefaultConfig()
	cfg.Stages, cfg.Data, cfg.KeyFile = f.Stages, p.globals.Data, p.globals.keyFile()
	if p.globals.NATS != "" {
		cfg.NATS = p.globals.NATS
	}
	cfg.NATSMonitor, cfg.AssumeDurable = f.NATSMonitor, f.AssumeDurable
	cfg.SourcesFile, cfg.Prune = f.Sources, f.Prune
	cfg.HTTP, cfg.NATSListen, cfg.MaxStore = f.HTTP, f.NATSListen, int64(f.MaxStore)
	cfg.AllowedPorts, cfg.Network, cfg.Timeout = f.AllowedPorts, mailbox.NetworkPolicy(f.NetworkPolicy), f.Timeout
	cfg.Version = version().Version
	if f.ReadyJSON {
		cfg.ReadyJSON = p.out
	}
	if p.globals.Log == "text" { // a log that programs read holds nothing else
		cfg.Banner = p.err
	}
	return cfg
}

type runCmd struct {
	runFlags `embed:""`
}

// Help says more.
func (runCmd) Help() string {
	return `Without flags everything runs in this one process: an embedded NATS server that keeps what it stores in ` +
		`./posthorn-data, health and metrics on 127.0.0.1:8080, and NATS for local subscribers on 127.0.0.1:4222. ` +
		`Ctrl-C (SIGTERM) finishes what is in hand and stops; a second one stops at once.

Examples:

  posthorn run --sources sources.yaml
  posthorn run --data /var/lib/posthorn --http 0.0.0.0:8080
  posthorn run --stages parser --nats nats://posthorn@nats.example.org --data /var/lib/posthorn-parser`
}

// Run runs the stages until it is told to stop.
func (c *runCmd) Run(p *program) error {
	err := allinone.Run(p.ctx, c.settings(p), p.log)
	if p.ctx.Err() != nil && errors.Is(err, context.Canceled) { // told to stop while it started
		return nil
	}
	return err
}
