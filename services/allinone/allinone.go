// Package allinone is the floor plan: which rooms there are, in which order they stop, and what they stand on. All
// stages in one process over the embedded server, or some of them over an external one: the same code over the same
// streams.
package allinone

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"posthorn/pkg/bus"
	"posthorn/pkg/embeddednats"
	"posthorn/pkg/fault"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
	"posthorn/services/archiver"
	"posthorn/services/fetcher"
	"posthorn/services/parser"
	"posthorn/services/router"
)

// house is one running process.
type house struct {
	cfg     Config
	log     *slog.Logger
	data    *dataDir
	keys    *secret.Keyring
	server  *embeddednats.Server // nil with an external server
	conn    *bus.Conn
	leases  *bus.Leases
	sources *source.Store
	rooms   *stage.House
}

// Addresses are where a running process can be reached.
type Addresses struct {
	Ready bool   `json:"ready"`
	HTTP  string `json:"http"`
	// NATS carries the credentials that a local subscriber needs.
	NATS string `json:"nats"`
}

// Run runs the stages until ctx ends, then stops them in order. What cannot be started at all is returned as an error
// that a person can act on.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	h := &house{cfg: cfg, log: log}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.open(ctx); err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTP)
	if err != nil {
		return fmt.Errorf("the address %s for health and metrics is taken or cannot be used: %w; choose another "+
			"with --http (port 0 picks a free one)", cfg.HTTP, err)
	}
	addresses := Addresses{Ready: true, HTTP: "http://" + listener.Addr().String(), NATS: h.url()}
	h.rooms = &stage.House{Rooms: h.plan(), Log: log}

	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() {
		if err := stage.Serve(inner, listener, h.ready, h.metrics(), h.front()); err != nil {
			log.Error("health and metrics are no longer served", "error", err)
		}
	})
	beside.Go(func() {
		h.data.follow(inner, h.conn, func(err error) { log.Warn("the mark of the store could not be written", "error", err) })
	})
	visible, err := stage.Appear(inner, h.conn, h.present(ctx), log)
	if err != nil {
		return err
	}
	beside.Go(func() { <-visible })
	beside.Go(func() { keepMemorySmall(inner) })
	h.greet(addresses)
	h.rooms.Run(ctx, func() { h.announce(addresses) })
	if err := h.data.adopt(inner, h.conn); err != nil {
		log.Warn("the mark of the store could not be written", "error", err)
	}
	_ = os.Remove(h.data.file("ready.json")) // it is stale from now on; a client that finds it sees nobody answer
	log.Info("stopped; mail waits on its servers")
	return nil
}

// open opens everything the rooms stand on.
func (h *house) open(ctx context.Context) (err error) {
	if h.data, err = openData(h.cfg.Data); err != nil {
		return err
	}
	if h.keys, err = secret.LoadOrCreate(h.cfg.KeyFile); err != nil {
		return err
	}
	options := bus.Options{Name: "posthorn " + h.cfg.Instance, Logger: h.log}
	if h.cfg.NATS == Embedded {
		password, err := h.localPassword()
		if err != nil {
			return err
		}
		h.server, err = embeddednats.Start(ctx, embeddednats.Config{
			Dir: h.data.file("nats"), Listen: h.cfg.NATSListen, Password: password, MaxStore: h.cfg.MaxStore, Logger: h.log,
		})
		if err != nil {
			return fmt.Errorf("the embedded NATS server cannot start: %w; choose another address with --nats-listen "+
				"(port 0 picks a free one)", err)
		}
		options.Embedded = h.server
	} else {
		options.URL = h.cfg.NATS
	}
	if h.conn, err = bus.Connect(ctx, options); err != nil {
		return fmt.Errorf("no connection to NATS: %w", err)
	}
	if err := h.data.belongs(ctx, h.conn); err != nil {
		return err
	}
	if err := h.provision(ctx); err != nil {
		return err
	}
	if err := h.data.adopt(ctx, h.conn); err != nil {
		return err
	}
	if h.sources, err = stage.OpenSources(ctx, h.conn, h.keys, h.cfg.AllowedPorts, h.log); err != nil {
		return err
	}
	if err := h.sources.EnsureWorkflow(ctx, "posthorn"); err != nil {
		return err
	}
	h.leases = bus.NewLeases(h.conn, bus.LeaseConfig{Owner: h.cfg.Instance})
	return h.apply(ctx)
}

// provision creates what is missing where the rights allow it.
func (h *house) provision(ctx context.Context) error {
	changes, err := h.conn.Provision(ctx, bus.ProvisionConfig{})
	if fault.CodeOf(err) == fault.StoreDenied {
		err = h.conn.CheckProvisioned(ctx)
	}
	if err != nil {
		return fmt.Errorf("the streams are not as they have to be: %w", err)
	}
	if len(changes) > 0 {
		h.log.Info("streams provisioned", "changes", len(changes))
	}
	return nil
}

// apply brings the sources of the file into the store.
func (h *house) apply(ctx context.Context) error {
	if h.cfg.SourcesFile == "" {
		return nil
	}
	file, err := source.LoadFile(h.cfg.SourcesFile, os.LookupEnv)
	if err != nil {
		return source.Explain(ctx, h.sources, file, err)
	}
	report, err := source.Apply(ctx, h.sources, file, source.ApplyOptions{Prune: h.cfg.Prune})
	if err != nil {
		return err
	}
	h.log.Info("sources applied", "file", h.cfg.SourcesFile, "created", len(report.Created),
		"changed", len(report.Changed), "unchanged", len(report.Unchanged), "paused", len(report.Paused),
		"removed", len(report.Removed))
	for _, id := range report.Paused {
		h.log.Warn("a source is no longer in the sources file: paused; --prune removes it", "source", id)
	}
	return nil
}

// plan is the floor plan: the rooms of this process in the order of a mail's way, which is the order they stop in.
func (h *house) plan() []stage.Room {
	mail := stage.MailConfig{Network: h.cfg.Network, Timeout: h.cfg.Timeout}
	all := map[string]func(stage.Deps) (stage.Stage, error){
		Fetcher: func(deps stage.Deps) (stage.Stage, error) {
			return fetcher.New(fetcher.Config{
				Instance: h.cfg.Instance, Mail: mail, SpoolDir: h.data.file("spool"),
			}, deps)
		},
		Parser: func(deps stage.Deps) (stage.Stage, error) {
			return parser.New(parser.Config{Instance: h.cfg.Instance}, deps)
		},
		Router: func(deps stage.Deps) (stage.Stage, error) {
			return router.New(router.Config{Instance: h.cfg.Instance}, deps)
		},
		Archiver: func(deps stage.Deps) (stage.Stage, error) {
			return archiver.New(archiver.Config{Instance: h.cfg.Instance, Mail: mail, Durable: h.durable}, deps)
		},
	}
	var rooms []stage.Room
	for _, name := range stages {
		if h.cfg.runs(name) {
			rooms = append(rooms, stage.Room{Name: name, Make: func(metrics prometheus.Registerer) (stage.Stage, error) {
				return all[name](stage.Deps{
					Conn: h.conn, Publisher: h.conn.Publisher(), Leases: h.leases, Sources: h.sources, Keys: h.keys,
					Metrics: metrics, Log: h.log,
				})
			}})
		}
	}
	return rooms
}

// durable tells whether acknowledged messages survive a power cut.
func (h *house) durable(ctx context.Context) (bool, error) {
	if h.cfg.AssumeDurable {
		return true, nil
	}
	ok, err := h.conn.SyncAlways(ctx, h.cfg.NATSMonitor)
	if fault.CodeOf(err) == fault.StoreNotDurable {
		h.log.Debug("the store is not known to be durable", "error", err)
		return false, nil
	}
	return ok, err
}

// present is what `posthorn status` and its like see of this process.
func (h *house) present(ctx context.Context) stage.Present {
	present := stage.Present{
		Instance: h.cfg.Instance, Stages: h.cfg.Stages, Version: h.cfg.Version, Since: time.Now().UTC(),
		AllowedPorts: h.cfg.AllowedPorts,
	}
	var err error
	if present.Durable, err = h.durable(ctx); err != nil {
		h.log.Debug("whether the store is durable is not known", "error", err)
	}
	if _, present.MaxStore, err = h.conn.Usage(ctx); err != nil {
		h.log.Debug("how much the store may keep is not known", "error", err)
	}
	return present
}

// ready is nil while this process does its work. A broken source is not its fault.
func (h *house) ready() error {
	var server error
	if h.server != nil {
		server = h.server.Healthy()
	}
	return errors.Join(server, h.conn.Ready(), h.rooms.Ready())
}

func (h *house) metrics() prometheus.Gatherer {
	process := prometheus.NewRegistry()
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "posthorn_build_info", Help: "1, labelled with the version.",
		ConstLabels: prometheus.Labels{"version": h.cfg.Version},
	})
	build.Set(1)
	process.MustRegister(build)
	return prometheus.Gatherers{process, h.rooms}
}

// front is what a browser sees at the address: where things are.
func (h *house) front() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, "Posthorn %s is running (%s).\n\n/livez    the process runs\n/readyz   every stage is at "+
			"work\n/metrics  for Prometheus\n\nSources and what is wrong with them: posthorn status\n",
			h.cfg.Version, strings.Join(h.cfg.Stages, ", ")) // the reader has gone: nobody is left to tell
	})
}

// url is the NATS address for local subscribers and commands.
func (h *house) url() string {
	if h.server != nil {
		return h.server.ClientURL()
	}
	return h.cfg.NATS
}

// greet tells the person who started the program where everything is.
func (h *house) greet(a Addresses) {
	if h.cfg.Banner == nil {
		return
	}
	lines := []string{"Posthorn " + h.cfg.Version, "  data     " + h.data.path}
	if h.keys.Created() {
		lines = append(lines, "  keys     "+h.keys.Path()+"  (new: keep a copy of this file in a safe place)")
	} else {
		lines = append(lines, "  keys     "+h.keys.Path()+"  (keep a copy of this file in a safe place)")
	}
	lines = append(lines, "  health   "+a.HTTP+"/readyz  (and /metrics)")
	if a.NATS != "" {
		lines = append(lines, "  subscribe:  nats sub --server '"+a.NATS+"' 'contact-request.v1.>'")
	}
	lines = append(lines, "  stop with Ctrl-C; mail waits on its servers until the next start", "")
	_, _ = fmt.Fprintln(h.cfg.Banner, strings.Join(lines, "\n")) // a banner nobody can read is no reason to stop
}

// announce tells programs that every stage is at work.
func (h *house) announce(a Addresses) {
	line, err := json.Marshal(a)
	if err == nil {
		err = writeFile(h.data.file("ready.json"), append(line, '\n'))
	}
	if err == nil && h.cfg.ReadyJSON != nil {
		_, err = fmt.Fprintf(h.cfg.ReadyJSON, "%s\n", line)
	}
	if err != nil {
		h.log.Error("that every stage is ready could not be told", "error", err)
		return
	}
	h.log.Info("every stage is at work", "stages", strings.Join(h.cfg.Stages, ","))
}

// localPassword is the password of local subscribers, the same at every start, so that they need not be told a new one.
func (h *house) localPassword() (string, error) {
	path := h.data.file("nats-password")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		data = []byte(rand.Text())
		err = writeFile(path, data)
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(data)), nil
}

// close ends what open has opened, in the reverse order.
func (h *house) close() error {
	if h.conn != nil {
		h.conn.Close()
	}
	if h.server != nil {
		h.server.Shutdown()
	}
	if h.data != nil {
		return h.data.close()
	}
	return nil
}
