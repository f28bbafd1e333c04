package allinone

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"posthorn/pkg/mailbox"
)

// Names of the stages.
const (
	Fetcher  = "fetcher"
	Parser   = "parser"
	Router   = "router"
	Archiver = "archiver"
)

// Stages lists every stage in the order of a mail's way.
var stages = []string{Fetcher, Parser, Router, Archiver}

// Embedded is the NATS address that means: the server inside this process.
const Embedded = "embedded"

// Config of one Posthorn process. [DefaultConfig] has a value for everything.
type Config struct {
	// Stages to run; "all" alone is every stage.
	Stages []string
	// NATS is the URL of the server, or [Embedded].
	NATS string
	// NATSMonitor is the monitoring address of an external server, to see whether it writes at once.
	NATSMonitor string
	// AssumeDurable vouches for an external server that writes at once.
	AssumeDurable bool
	// Data directory. Created when missing, for this user alone.
	Data string
	// KeyFile holds the keys that seal passwords; default Data/keys.
	KeyFile string
	// SourcesFile is a YAML file with sources, "" for none.
	SourcesFile string
	// Prune removes sources that have disappeared from the sources file, instead of pausing them.
	Prune bool
	// HTTP is the address of health, metrics and the console.
	HTTP string
	// NATSListen is where the embedded server listens for local subscribers; "" or "off" for nowhere.
	NATSListen string
	// MaxStore limits what the embedded server keeps on disk, in bytes; 0 is what the disk has.
	MaxStore int64
	// AllowedPorts of mail servers.
	AllowedPorts []int
	// Network rules which addresses of mail servers may be dialled.
	Network mailbox.NetworkPolicy
	// Timeout is how long a mail server may be silent.
	Timeout time.Duration
	// Instance names this process; default host name and process id.
	Instance string
	// ReadyJSON, when set, gets one line of JSON once every stage is ready.
	ReadyJSON io.Writer
	// Banner, when set, gets a few lines for the person who started the program.
	Banner io.Writer
	// Version of the program.
	Version string
}

// DefaultConfig is what `posthorn run` does without flags.
func DefaultConfig() Config {
	return Config{
		Stages: []string{"all"}, NATS: Embedded, Data: "posthorn-data", HTTP: "127.0.0.1:8080",
		NATSListen: "127.0.0.1:4222", AllowedPorts: []int{110, 143, 993, 995}, Network: mailbox.PrivateOK,
		Timeout: 20 * time.Second,
	}
}

// check fills what can be derived and names everything that is wrong.
func (c *Config) check() error {
	var errs []error
	if slices.Equal(c.Stages, []string{"all"}) {
		c.Stages = slices.Clone(stages)
	}
	if len(c.Stages) == 0 {
		errs = append(errs, errors.New("no stage to run: name some with --stages"))
	}
	for _, name := range c.Stages {
		if !slices.Contains(stages, name) {
			errs = append(errs, fmt.Errorf("there is no stage %q; there are: all, %s", name, strings.Join(stages, ", ")))
		}
	}
	if c.Network != mailbox.PrivateOK && c.Network != mailbox.PublicOnly {
		errs = append(errs, fmt.Errorf("network policy %q is none of private-ok and public-only", c.Network))
	}
	if c.NATSListen == "off" {
		c.NATSListen = ""
	}
	if c.Data == "" {
		errs = append(errs, errors.New("the data directory has no name: give one with --data"))
	}
	if c.KeyFile == "" {
		c.KeyFile = filepath.Join(c.Data, "keys")
	}
	if c.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "posthorn"
		}
		c.Instance = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	return errors.Join(errs...)
}

func (c *Config) runs(stage string) bool { return slices.Contains(c.Stages, stage) }
